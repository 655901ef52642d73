import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import ConfigError
from transom_engine.oci.user import User, open_in, resolve


def test_no_user_is_root_with_the_groups_that_list_it(rootfs):
    assert resolve(rootfs=str(rootfs)) == User(uid=0, gid=0, groups=(0, 44), home="/root")


@pytest.mark.parametrize("word", ["svc", "1000"])
def test_a_user_brings_its_own_group_supplementary_groups_and_home(rootfs, word):
    assert resolve(rootfs=str(rootfs), user=word) == User(uid=1000, gid=1001, groups=(1001, 29, 44), home="/home/svc")


def test_a_group_that_is_named_replaces_the_users_own_and_supplementary_ones(rootfs):
    assert resolve(rootfs=str(rootfs), user="svc:audio").groups == (29,)
    assert resolve(rootfs=str(rootfs), user=":audio") == User(uid=0, gid=29, groups=(29,), home="/root")


def test_numbers_that_no_file_names_are_taken_as_they_are(rootfs):
    assert resolve(rootfs=str(rootfs), user="77:88") == User(uid=77, gid=88, groups=(88,), home="/")
    assert resolve(rootfs=str(rootfs), user="77") == User(uid=77, gid=0, groups=(0,), home="/")


def test_added_groups_come_last_by_name_or_number_and_once(rootfs):
    assert resolve(rootfs=str(rootfs), user="svc", group_add=["44", "audio", "99"]).groups == (1001, 29, 44, 99)


def test_a_line_with_too_few_fields_counts_as_far_as_it_goes(rootfs):
    assert resolve(rootfs=str(rootfs), user="bare") == User(uid=1002, gid=0, groups=(0,), home="/")


def test_an_image_without_the_files_still_has_root_and_numbers(tmp_path):
    assert resolve(rootfs=str(tmp_path)) == User(uid=0, gid=0, groups=(0,), home="/")
    assert resolve(rootfs=str(tmp_path), user="5:6").groups == (6,)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ({"user": "nobody2"}, "unable to find user nobody2: no matching entries in passwd file; name a numeric uid"),
        ({"user": "svc:nope"}, "unable to find group nope: no matching entries in group file; name a numeric gid"),
        ({"group_add": ["no"]}, "unable to find group no: no matching entries in group file; name a numeric gid"),
        ({"user": "2147483648"}, "uids and gids must be in range 0-2147483647, and 2147483648 is not"),
        ({"user": "1:4294967296"}, "uids and gids must be in range 0-2147483647, and 4294967296 is not"),
    ],
)
def test_an_unknown_user_or_group_is_refused(rootfs, words, text):
    with pytest.raises(ConfigError) as caught:
        resolve(rootfs=str(rootfs), **words)
    assert str(caught.value) == text


def test_a_symbolic_link_in_the_image_cannot_lead_out_of_it(rootfs):
    outside = rootfs.parent / "outside"
    outside.write_text("evil:x:4242:0::/:\n")
    passwd = rootfs / "etc/passwd"
    for target in (str(outside), "../../outside", "../../../../../.." + str(outside)):
        passwd.unlink()
        passwd.symlink_to(target)
        with pytest.raises(ConfigError):
            resolve(rootfs=str(rootfs), user="evil")


def test_a_symbolic_link_within_the_image_is_followed_from_the_images_root(rootfs):
    (rootfs / "etc").rename(rootfs / "configuration")
    (rootfs / "etc").symlink_to("/configuration")
    assert resolve(rootfs=str(rootfs), user="svc").uid == 1000


def test_a_fifo_in_the_files_place_does_not_block(rootfs):
    (rootfs / "etc/passwd").unlink()
    os.mkfifo(rootfs / "etc/passwd")
    assert resolve(rootfs=str(rootfs)).uid == 0


def test_no_descriptor_is_left_open(rootfs):
    before = set(os.listdir("/proc/self/fd"))
    resolve(rootfs=str(rootfs), user="svc:audio")
    with pytest.raises(FileNotFoundError):
        open_in(rootfs=str(rootfs), path="etc/absent")
    assert set(os.listdir("/proc/self/fd")) == before


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="/\0")))
def test_whatever_the_file_holds_and_the_user_says_the_answer_is_a_user_or_a_word_of_refusal(tmp_path_factory, text):
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_text(text, newline="")
    try:
        assert resolve(rootfs=str(root), user=text.partition("\n")[0]).uid >= 0
    except ConfigError:
        pass
