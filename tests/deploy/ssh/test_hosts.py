"""Host lines, host files, and what is wrong with them."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_dask.deploy.ssh.hosts import MAX_HOSTS, NO_WORKERS, HostSpec, expand, host_line, parse_line, read_hosts
from trio_dask.errors import UnavailableError, UsageError

PRINTABLE = st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" ")
NAMES = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,20}", fullmatch=True)
ADDRESSES = st.ip_addresses().map(str)
WORDS = st.text(PRINTABLE, min_size=1, max_size=30).filter(lambda text: text.isprintable() and text == text.strip())
SAFE = WORDS.filter(lambda text: not text.startswith("-"))
PAIR_NAMES = st.text(string.ascii_letters + "\"'#\\", min_size=1, max_size=8)
AMOUNTS = st.floats(0, 1e15, allow_nan=False)
SPECS = st.builds(
    HostSpec,
    host=NAMES | ADDRESSES,
    user=st.none() | SAFE,
    port=st.none() | st.integers(1, 65535),
    nworkers=st.none() | st.sampled_from(["0", "1", "48", "-1", "-3", "auto"]),
    nthreads=st.none() | st.integers(1, 4096),
    memory=st.none() | st.sampled_from(["16GiB", "0.5", "auto", "0", "1.5 GB"]),
    python=st.none() | SAFE,
    name=st.none() | WORDS,
    resources=st.none() | st.dictionaries(PAIR_NAMES, AMOUNTS, min_size=1, max_size=3),
    setup=st.none() | WORDS,
    is_scheduler=st.booleans(),
    origin=st.just("line 1"),
)


@given(SPECS)
def test_a_host_is_read_back_from_its_line(spec: HostSpec) -> None:
    assert parse_line(host_line(spec), "line 1") == [spec]


@given(SPECS, st.sampled_from(["", "  ", "\t", " # a 'comment", " #"]), st.sampled_from(["", " ", "\t"]))
def test_spaces_and_comments_around_a_line_do_not_matter(spec: HostSpec, after: str, before: str) -> None:
    assert parse_line(f"{before}{host_line(spec)}{after}", "line 1") == [spec]


@given(st.text(max_size=60))
def test_any_text_is_a_list_of_hosts_or_an_error_with_its_place(text: str) -> None:
    try:
        hosts = parse_line(text, "line 1")
    except UsageError as error:
        assert str(error).startswith("line 1: ")  # noqa: PT017 - most texts are wrong
        return
    for spec in hosts:
        assert parse_line(host_line(spec), "line 1") == [spec]


@given(st.integers(0, 10**5), st.integers(0, 300), st.integers(1, 8))
def test_a_range_has_every_number_once_as_wide_as_the_first(first: int, more: int, width: int) -> None:
    start, last = f"{first:0{width}}", first + more
    found = expand(f"a[{start}-{last}].b")
    assert [int(name[1:-2]) for name in found] == list(range(first, last + 1))
    assert all(len(name) - 3 == max(len(start), len(str(number))) for number, name in enumerate(found, first))
    assert found[0] == f"a{start}.b"


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_several_ranges_are_combined(sizes: list[int]) -> None:
    found = expand("x".join(f"[1-{size}]" for size in sizes))
    expected = 1
    for size in sizes:
        expected *= size
    assert len(set(found)) == len(found) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[01-03,20]", ["node01", "node02", "node03", "node20"]),
        ("192.168.0.[1,2]", ["192.168.0.1", "192.168.0.2"]),
        ("r[1-2]n[8-10]", ["r1n8", "r1n9", "r1n10", "r2n8", "r2n9", "r2n10"]),
        ("[1-2].example.org", ["1.example.org", "2.example.org"]),
        ("plain", ["plain"]),
    ],
)
def test_ranges(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize(
    ("line", "spec"),
    [
        ("alice@node1:2222", HostSpec("node1", "alice", 2222)),
        ("[::1]", HostSpec("::1")),
        ("bob@[fe80::1%eth0]:22", HostSpec("fe80::1%eth0", "bob", 22)),
        ("me@company.com@node1", HostSpec("node1", "me@company.com")),
        (r"DOMAIN\me@node1", HostSpec("node1", r"DOMAIN\me")),
        ("'john doe'@node1", HostSpec("node1", "john doe")),
        (
            "node1 setup=\"module load x; . 'my venv'/bin/activate\"",
            HostSpec("node1", setup="module load x; . 'my venv'/bin/activate"),
        ),
        (r'node1 python="/opt/a \"b\"\c"', HostSpec("node1", python=r'/opt/a "b"\c')),
        ("node1 scheduler nworkers=0", HostSpec("node1", nworkers=NO_WORKERS, is_scheduler=True)),
        ("scheduler", HostSpec("scheduler")),
        ("node1 resources=GPU=2,MEM=10e9 # two", HostSpec("node1", resources={"GPU": 2, "MEM": 10e9})),
        ("node1 resources='GPU=2 MEM=1'", HostSpec("node1", resources={"GPU": 2, "MEM": 1})),
    ],
)
def test_host_lines(line: str, spec: HostSpec) -> None:
    assert parse_line(line, "") == [spec]


WRONG = [
    ("::1", "write an IPv6 address in brackets"),
    ("[zz::]", "'[zz::]' is no IPv6 address"),
    ("x;touch /tmp/canary", "'x;touch' is neither the name nor the address of a host"),
    ("$(id)", "'$(id)' is neither"),
    ("`id`", "'`id`' is neither"),
    ("a,b", "'a,b' is neither"),
    ("-oProxyCommand=id", "'-oProxyCommand=id' is not the name of a host"),
    ("-l@node1", "'-l' is not the name of a user"),
    ("@node1", "'' is not the name of a user"),
    ("me@", "'' is not the name of a host"),
    ("192.168.0.{1,2}", "only a shell knows braces"),
    ("nworkers=2", "has no host before it"),
    ("node[1-2", "a bracket without its partner"),
    ("node1-2]", "a bracket without its partner"),
    ("node[2-1]", "the range 2-1 ends below its start"),
    ("node[]", "'' is no range of numbers"),
    ("node[a-c]", "'a-c' is no range"),
    ("node[1-99999]", "means 99999 hosts"),
    ("n[1-999999999]x[1-999999999]", "there can be 10000"),
    ("node1:", "'node1:': '' is not the port of an SSH server"),
    ("node1:0", "'0' is not the port of an SSH server"),
    ("node1:99999", "'99999' is not the port"),
    ("node1:ssh", "'ssh' is not the port"),
    ("node1 'open", "the quote at character 7 is not closed"),
    ('node1 setup="open', "the quote at character 13 is not closed"),
    ("node1 node2", "'node2' is no option of a host; there are nworkers=, "),
    ("node1 workers=2", "'workers' is no option of a host"),
    ("node1 nworkers=many", "nworkers: 'many' is not a number of workers"),
    ("node1 nworkers=99999", "nworkers: '99999' means 99999 workers"),
    ("node1 nthreads=0", "nthreads: '0' is not a number of threads"),
    ("node1 memory=10", "memory: '10' is 10 B, and a worker needs at least 48 MiB; did you mean 10 GB?"),
    ("node1 memory=lots", "memory: 'lots' is not a memory limit"),
    ("node1 python=", "python: '' cannot be used"),
    ("node1 python=-c", "python: '-c' is no program"),
    ("node1 name=''", "name: '' is not a name"),
    ("node1 resources=GPU", "resources: 'GPU' is not NAME=NUMBER"),
    ("node1 setup=' '", "setup: ' ' cannot be used"),
    ("node1 nworkers=2 nworkers=2", "nworkers is given twice"),
    ("node1 scheduler scheduler", "scheduler is given twice"),
    ("x" * 100_000, "has 100000 characters; a line can have 16384"),
    ("node1 name=a\x07", "has a character that cannot be printed"),
    ("node\xa01", "has a character that cannot be printed"),
]


@pytest.mark.parametrize(("line", "message"), WRONG, ids=[ascii(line)[:60] for line, _ in WRONG])
def test_a_wrong_line_of_a_file_is_told_with_file_and_line(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_bytes(b"\xef\xbb\xbf# hosts\r\n\r\nfirst\r\n" + line.encode())
    with pytest.raises(UsageError) as caught:
        read_hosts([], str(path))
    assert str(caught.value).startswith(f"{path}:4: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(("line", "message"), [*WRONG, ("\udcff", "cannot be printed"), ("", "names no host")])
def test_a_wrong_argument_is_told_with_its_number(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_hosts(["first", line])
    assert str(caught.value).startswith("argument 2: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na nworkers=2\n", ":3: a stands in {path}:1 too, with other options"),
        ("a scheduler\nb scheduler\n", ":2: {path}:1 has a scheduler too"),
        ("a[1-2] scheduler\n", ":1: {path}:1 has a scheduler too"),
        ("a name=x\nb name=x\n", ":2: name=x stands in {path}:1 too"),
        ("a\nb nworkers=0\n", ":2: nworkers=0 would start nothing"),
        ("# nothing\n\n", " names no host"),
        ("", " names no host"),
    ],
)
def test_hosts_that_contradict_each_other_are_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_hosts([], str(path))
    assert str(caught.value).startswith(f"{path}{message.format(path=path)}")


def test_a_file_that_is_not_utf_8_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_bytes(b"a\nb\n\xff\n")
    with pytest.raises(UsageError, match=r":3: this is not UTF-8 \(byte 0xff\)"):
        read_hosts([], str(path))


@pytest.mark.parametrize("name", ["missing", "folder"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnavailableError, match=f"cannot read .*{name}: "):
        read_hosts([], str(tmp_path / name))


def test_a_host_that_is_written_often_is_used_once_and_told(tmp_path: Path) -> None:
    path = tmp_path / "hosts.txt"
    path.write_text("a\n" * 5 + "B\nb\n[::1]\n")
    found = read_hosts(["a", "c"], str(path))
    assert [spec.place for spec in found.hosts] == ["a", "c", "B", "[::1]"]
    assert found.notes == (
        "used once, though written more than once: "
        f"a (argument 1, {path}:1, {path}:2 and 3 more), B ({path}:6, {path}:7)",
    )


def test_one_name_for_a_range_gets_numbers() -> None:
    assert [spec.name for spec in read_hosts(["n[1-3] name=gpu"]).hosts] == ["gpu-0", "gpu-1", "gpu-2"]


def test_too_many_hosts_are_refused() -> None:
    with pytest.raises(UsageError, match="these are 10001 hosts"):
        read_hosts([f"n[1-{MAX_HOSTS}]", "other"])


TOML = """\
hosts = ["plain[1-2] nworkers=3", "other memory=2GB"]

[defaults]
user = "alice"
memory = "4GiB"

[[host]]
host = "gpu[1-2]"
port = 2222
nworkers = 2
nthreads = 8
resources = { GPU = 2, MEM = 1e9 }
setup = ["module load x", ". venv/bin/activate"]
name = "gpu"

[[host]]
host = "bob@head"
scheduler = true
nworkers = 0
python = "/opt/py/bin/python"
"""


def test_a_toml_file_says_the_same_and_has_defaults(tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(TOML)
    assert [host_line(spec) for spec in read_hosts([], str(path)).hosts] == [
        "alice@plain1 nworkers=3 memory=4GiB",
        "alice@plain2 nworkers=3 memory=4GiB",
        "alice@other memory=2GB",
        *(
            f"alice@gpu{number}:2222 nworkers=2 nthreads=8 memory=4GiB name=gpu-{number - 1} "
            'resources=GPU=2,MEM=1000000000 setup="module load x && . venv/bin/activate"'
            for number in (1, 2)
        ),
        "bob@head nworkers=0 memory=4GiB python=/opt/py/bin/python scheduler",
    ]
    assert [spec.origin.removeprefix(str(path)) for spec in read_hosts([], str(path)).hosts] == [
        *(": hosts, item 1", ": hosts, item 1", ": hosts, item 2", ":7", ":7", ":16"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[host]]\nhost = ?", ":2: Invalid value, column 8"),
        ("[[host]]\nhost = ", ": this is no TOML: Invalid value (at end of document)"),
        (f"a = {'[' * 100_000}", ": this is no TOML: "),
        (f"a = {'9' * 5_000}", ": this is no TOML: "),
        ("[[hosts]]\nhost = 'a'", ": hosts is not a list of texts"),
        ("[host]\nhost = 'a'", ": write [[host]], with two brackets each"),
        ("[[host]]\nname = 'a'", ':1: a host needs host = "NAME"'),
        ("[[host]]\nhost = 'a'\n[[host]]\nhost = 'b c'\nfoo = 1", ":3: 'foo' is no option of a host"),
        ("[[host]]\nhost = 'b c'", ":1: 'b c' is neither the name nor the address"),
        ("[[host]]\nhost = 'a'\nscheduler = 1", ":1: 'scheduler' is no option"),
        ("[[host]]\nhost = 'a'\nnworkers = true", ":1: 'nworkers' cannot be 'True'"),
        ("[[host]]\nhost = 'a'\nport = 0", ":1: '0' is not the port of an SSH server"),
        ("[[host]]\nhost = 'a:1'\nport = 2", ":1: host and port: give the port once"),
        ("[[host]]\nhost = 'a'\nuser = '-l'", ":1: '-l' is not the name of a user"),
        ("[[host]]\nhost = 'a'\nsetup = [1]", ":1: setup is not a list of texts"),
        ('[[host]]\nhost = "a"\nsetup = "a\\nb"', ":1: setup: 'a\\nb' cannot be used; give commands in one line"),
        ("[[host]]\nhost = 'a'\nresources = { GPU = 'x' }", ":1: resources: 'GPU=x' is not NAME=NUMBER"),
        ("hosts = ['a', 'b:0']", ": hosts, item 2: 'b:0': '0' is not the port"),
        ("defaults = 1", ": defaults: this is not a table"),
        ("hosts = ['a']\n[defaults]\nname = 'x'", ": defaults: name is for one host"),
        ("other = 1", ": there is no 'other' in a file of hosts"),
    ],
)
def test_what_is_wrong_in_a_toml_file_is_told_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "hosts.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_hosts([], str(path))
    assert str(caught.value).startswith(f"{path}{message}")
