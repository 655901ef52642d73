/* For a user-mode kernel on a processor with AMX: loaded into it by LD_PRELOAD.
 *
 * Linux before 6.13 has room for 2,696 bytes of a process's registers where it is a user-mode kernel: all but AMX's
 * tiles. The host takes them only whole (ptrace(2), PTRACE_SETREGSET of NT_X86_XSTATE), so no guest gets beyond its
 * first process. What is missing is added here as zeros: without a word to the host (arch_prctl(2),
 * ARCH_REQ_XCOMP_PERM) no process has tiles, and a guest cannot say it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

long ptrace(enum __ptrace_request request, ...)
{
	static long (*next)(enum __ptrace_request, ...);
	static unsigned char state[1 << 14];
	static size_t whole; /* what the host calls the size of the registers */
	va_list words;

	va_start(words, request);
	pid_t pid = va_arg(words, pid_t);
	void *what = va_arg(words, void *), *data = va_arg(words, void *);
	va_end(words);
	if (!next)
		next = dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || (long)what != NT_X86_XSTATE)
		return next(request, pid, what, data);

	struct iovec *part = data, full = {state, sizeof state};
	if (!whole) {
		if (next(PTRACE_GETREGSET, pid, what, &full))
			return -1;
		whole = full.iov_len;
	}
	if (part->iov_len >= whole)
		return next(request, pid, what, data);
	full.iov_len = whole;
	memset(state, 0, whole);
	memcpy(state, part->iov_base, part->iov_len);
	return next(request, pid, what, &full);
}
