#!/bin/sh
# Process 1 of a guest, started with the host's root file system read-only as /: makes it writable and ready, runs one
# suite and powers off. run.py passes what it needs on the kernel's command line, which is process 1's environment.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/mnt

mount -t proc proc /proc

# modprobe, ours and the kernel's own, finds the modules in a directory that is not this version's or not there at all.
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/kernel/lib
ln -s "$GUEST_MODULES" /run/kernel/lib/modules
printf '#!/bin/sh\nexec /sbin/modprobe -d /run/kernel "$@"\n' > /run/kernel/modprobe
chmod 755 /run/kernel/modprobe
echo /run/kernel/modprobe > /proc/sys/kernel/modprobe
export PATH="/run/kernel:$PATH"

# What is written goes to a tmpfs. Without overlay the root stays read-only.
mount -t tmpfs -o size=90%,mode=755 writable /mnt
mkdir -p /mnt/upper /mnt/work /mnt/root
[ "$GUEST_OVERLAY" = no ] || modprobe -q overlay
if mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root 2>/dev/null; then
    for directory in proc run; do mount -n --move "/$directory" "/mnt/root/$directory"; done
    cd /mnt/root
    pivot_root . mnt
    cd /
    umount -l /mnt
else
    umount /mnt
    for directory in /var/tmp /var/lib /root; do mount -t tmpfs writable "$directory"; done
fi

[ -z "$GUEST_TOOLS" ] || cp -a "$GUEST_TOOLS/." /

mount -t sysfs sysfs /sys
mount -t devtmpfs devices /dev 2>/dev/null || [ -e /dev/null ] || echo "guest: no devices"
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o ptmxmode=666,mode=620 pts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t mqueue mqueue /dev/mqueue
ln -sf /proc/self/fd /dev/fd
ln -sf pts/ptmx /dev/ptmx

# A tmpfs keeps no user.* attributes before Linux 6.6 and has no direct I/O: $TMPDIR is ext4 where the kernel has it.
mount -t tmpfs -o size=90%,mode=1777 temporary /mnt
modprobe -q -a loop ext4
truncate -s 16G /mnt/disk
mkfs.ext4 -q -F -E nodiscard -O ^has_journal /mnt/disk
if mount -o loop,noatime /mnt/disk /mnt; then chmod 1777 /mnt; fi

hostname guest
ip link set lo up

# One refused name fails a whole write.
if mount -t cgroup2 cgroup2 /sys/fs/cgroup; then
    for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
        echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
    done
fi

stty -F "/dev/$GUEST_CONSOLE" -opost -echo
cd "$GUEST_CHECKOUT"
cat > /run/suite <<END
#!/bin/sh
export PATH=$PATH HOME=$HOME LANG=$LANG TMPDIR=$TMPDIR
cd $GUEST_CHECKOUT
setsid -w .venv/bin/python -u tests/vm/guest.py $GUEST_SUITE < /dev/null 2>&1 | cat > /dev/$GUEST_CONSOLE
busybox poweroff -f
END
[ "$GUEST_INIT" = systemd ] || exec tini -s -- sh /run/suite

# systemd with nothing but the suite: what else a host starts would take longer than most suites.
mkdir -p /run/systemd/system
cat > /run/systemd/system/suite.service <<END
[Unit]
DefaultDependencies=no
[Service]
ExecStart=/bin/sh /run/suite
StandardOutput=null
StandardError=null
TasksMax=infinity
END
exec /lib/systemd/systemd --unit=suite.service --log-level=warning --log-target=console
