"""edge.toml: what it may say, and that what is wrong in it is named with its line."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from koinon_core.errors import UsageError
from koinon_edge.settings import Container, GateSettings, NetworkSettings, SpoolSettings, load
from koinon_edge.settings.lines import line_of, lines

_FULL = """
name = "line-4"
address = "coordinator.example:8440"
credentials = "/etc/koinon/credentials"
state = "state"

[tasks.defects]
command = ["python3", "train.py", ""]
run = "defects-2027"
directory = "defects"
environment = { OMP_NUM_THREADS = "2" }
timeout = "2h"
memory = "2GiB"
cpus = 3.5
nice = 15
linger = 0
grace = "90s"
[tasks.defects.container]
image = "site/defects:3"
runtime = "nvidia"
mounts = ["/data:/data:ro"]
options = ["--shm-size=1g"]

[tasks.wear]
command = ["./wear"]

[gate]
mains = true
battery_min = 30
heat_start = 60.5
heat_pause = 85
heat_resume = 70
cpu_pressure_max = 20
gpu_load_max = 10
memory_min = "1.5GB"
disk_min = 4096
power_modes = ["15W", "MAXN"]
metered = true
roaming = true
bytes_day = "500 MB"
bytes_month = "10GB"
windows = ["mon-fri 22:00-06:00", "sat,sun"]
zone = "Europe/Berlin"
patience = "1.5m"
unknown = "refuse"

[network]
attach = "never"
bandwidth = "500KB"
proxy = "http://proxy:3128"
metered_interfaces = ["lte*"]
keepalive = 60

[spool]
quota = "1TB"
"""


@pytest.fixture
def edge(tmp_path):
    """Writes edge.toml, and loads it."""

    def write(text: str):
        path = tmp_path / "edge.toml"
        path.write_text(text)
        return load(path)

    return write


def refusal(edge, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        edge(text)
    said = str(caught.value)
    assert "\n" not in said
    return said.partition("edge.toml ")[2]


def task(text: str) -> str:
    return f'[tasks.a]\ncommand = ["x"]\n{text}'


# -- what is said ---------------------------------------------------------------------------------------------


def test_all_that_an_owner_says_is_read_with_its_unit(edge, tmp_path):
    found = edge(_FULL)
    assert (found.name, found.address, found.path) == (
        "line-4",
        "coordinator.example:8440",
        tmp_path / "edge.toml",
    )
    assert (found.credentials, found.state) == (Path("/etc/koinon/credentials"), tmp_path / "state")
    defects = found.tasks["defects"]
    assert (defects.name, defects.run, defects.command) == (
        "defects",
        "defects-2027",
        ("python3", "train.py", ""),
    )
    assert (defects.directory, defects.environment) == (tmp_path / "defects", {"OMP_NUM_THREADS": "2"})
    assert (defects.timeout, defects.memory, defects.cpus) == (7200.0, 2 * 1024**3, 3.5)
    assert (defects.nice, defects.linger, defects.grace) == (15, 0.0, 90.0)
    assert defects.container == Container(
        image="site/defects:3", runtime="nvidia", mounts=("/data:/data:ro",), options=("--shm-size=1g",)
    )
    gate = found.gate
    assert (gate.mains, gate.battery_min, gate.unknown, gate.patience) == (True, 30.0, "refuse", 90.0)
    assert (gate.heat_start, gate.heat_pause, gate.heat_resume) == (60.5, 85.0, 70.0)
    assert (gate.cpu_pressure_max, gate.gpu_load_max, gate.power_modes) == (20.0, 10.0, ("15W", "MAXN"))
    assert (gate.memory_min, gate.disk_min, gate.bytes_day) == (1_500_000_000, 4096, 500_000_000)
    assert (gate.bytes_month, gate.metered, gate.roaming, gate.zone) == (
        10**10,
        True,
        True,
        "Europe/Berlin",
    )
    assert [w.text for w in gate.windows] == ["mon-fri 22:00-06:00", "sat,sun"]
    assert found.network == NetworkSettings(
        attach="never", bandwidth=500_000, proxy="http://proxy:3128", metered_interfaces=("lte*",),
        keepalive=60.0,
    )  # fmt: skip
    assert found.spool == SpoolSettings(quota=10**12)


def test_what_is_not_said_has_a_default(edge, tmp_path):
    found = edge("")
    assert (found.name, found.address, found.credentials, found.state) == (None, None, None, None)
    assert (found.tasks, found.gate, found.network) == ({}, GateSettings(), NetworkSettings())
    assert found.spool.quota == 4_000_000_000
    wear = edge(task("")).tasks["a"]
    assert (wear.run, wear.directory, wear.environment, wear.timeout) == ("a", tmp_path, {}, 21600.0)
    assert (wear.memory, wear.cpus, wear.nice, wear.linger, wear.grace) == (None, None, 10, 60.0, 20.0)
    assert wear.container is None


def test_paths_are_taken_from_the_folder_of_the_file_wherever_one_stands(edge, tmp_path, monkeypatch):
    edge('state = "here"\ncredentials = "~/there"')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/line-4")
    found = load(Path("edge.toml"))
    assert (found.state, found.credentials) == (tmp_path / "here", Path("/home/line-4/there"))


def test_a_task_is_found_by_its_run_and_what_there_is_is_named_otherwise(edge):
    found = edge(_FULL)
    assert found.task_of("defects-2027").name == "defects"
    with pytest.raises(
        UsageError, match=r"run 'defects'; there are defects \(run 'defects-2027'\), wear: add"
    ):
        found.task_of("defects")
    with pytest.raises(UsageError, match=r"it has no task at all: add \[tasks\.wear\]"):
        edge("").task_of("wear")


# -- what is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n[gate]\nmains = true\nheat_strat = 70", "line 4: [gate] has no key 'heat_strat'; did you mean heat_start?"),
        ("nmae = 'x'", "line 1: the file has no key 'nmae'; did you mean name?"),
        ("[gaet]\nmains = true", "line 1: the file has no key 'gaet'; did you mean gate?"),
        ("\n[task.a]\ncommand = ['x']", "line 2: the file has no key 'task'; did you mean tasks?"),
        (task("commnad = 3"), "line 3: [tasks.a] has no key 'commnad'; did you mean command?"),
        (task("container.imgae = 'x'\n"), "line 3: [tasks.a.container] has no image; add the name of one"),
        (task("[tasks.a.container]\nimage = 'x'\nmount = []"),
         "line 5: [tasks.a.container] has no key 'mount'; did you mean mounts?"),
        ("[network]\natach = 'never'", "line 2: [network] has no key 'atach'; did you mean attach?"),
        ("[spool]\nqqq = 1", "line 2: [spool] has no key 'qqq'; there are quota"),
    ],
)  # fmt: skip
def test_a_key_that_there_is_not_is_named_with_its_line_and_the_nearest_one(edge, text, said):
    assert refusal(edge, text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gate]\nmains = 1", "line 2: mains in [gate] = 1 must be true or false"),
        ("[gate]\nheat_start = true", "line 2: heat_start in [gate] = true must be a number from 0 to 150"),
        ("[gate]\nheat_start = nan", "line 2: heat_start in [gate] = nan must be a number from 0 to 150"),
        ("[gate]\n\nbattery_min = 101", "line 3: battery_min in [gate] = 101 must be a number from 0 to 100"),
        ("[gate]\nmemory_min = '500 Mb'",
         "line 2: memory_min in [gate] = '500 Mb' must be a size, as '500MB' or '2GiB', or a whole number of bytes"),
        ("[gate]\ndisk_min = -1",
         "line 2: disk_min in [gate] = -1 must be a size, as '500MB' or '2GiB', or a whole number of bytes"),
        ("[gate]\npatience = '10 minutes'",
         "line 2: patience in [gate] = '10 minutes' must be a duration, as '90s', '10m', '6h' or '2d', or a number of "
         "seconds"),
        ("[gate]\nunknown = 'refused'",
         "line 2: unknown in [gate] = 'refused' must be 'allow' or 'refuse'; did you mean 'refuse'?"),
        ("[gate]\nheat_resume = 90", "line 2: heat_resume = 90 must be below heat_pause = 88"),
        ("[gate]\nmains=true\nheat_pause = 70", "line 3: heat_resume = 78 must be below heat_pause = 70"),
        ("[gate]\nheat_start = 88", "line 2: heat_start = 88 must be below heat_pause = 88"),
        ("[gate]\nzone = 'Europe/Berln'",
         "line 2: zone in [gate] = 'Europe/Berln' must be a time zone by its IANA name; did you mean Europe/Berlin?"),
        ("[gate]\nzone = '../../etc/passwd'",
         "line 2: zone in [gate] = '../../etc/passwd' must be a time zone by its IANA name, as Europe/Berlin"),
        ("[gate]\nwindows = 'sat'", "line 2: windows in [gate] = 'sat' must be a list of texts that are not empty"),
        ("[gate]\nwindows = [\n'sat',\n'satt']",
         "line 2: 'satt' in windows in [gate] is no window: there is no day 'satt'; days are mon, tue, wed, thu, fri, "
         "sat, sun"),
        ("gate = 3", "line 1: gate = 3 must be a table: write [gate] and its keys below"),
        ("address = 'example.com'", "line 1: address = 'example.com' must be HOST:PORT of the coordinator"),
        ("name = ''", "line 1: name = '' must be a text that is not empty"),
        ("state = '~nobody-like-this/x'",
         "line 1: state = '~nobody-like-this/x' must be a path in the home of a user that this machine knows"),
        ("[network]\nproxy = 'https://p:1'", "line 2: proxy in [network] = 'https://p:1' must be http://HOST:PORT"),
        ("[network]\nbandwidth = 10", "line 2: bandwidth in [network] = 10 must be at least 1000 B"),
        ("[network]\nkeepalive = '5s'", "line 2: keepalive in [network] = '5s' must be at least 10 seconds"),
        ("\n[tasks.a]\nrun = 'r'", "line 2: [tasks.a] has no command; add one, as command = ['python3', 'train.py']"),
        ("[tasks.a]\ncommand = 'python3 train.py'",
         "line 2: command in [tasks.a] = 'python3 train.py' must be a list of texts that begins with a program, as "
         "['python3', 'train.py']"),
        ("[tasks.a]\ncommand = []",
         "line 2: command in [tasks.a] = [] must be a list of texts that begins with a program, as ['python3', "
         "'train.py']"),
        ("\n[tasks.'a b']\ncommand = ['x']",
         "line 2: a task cannot be called 'a b'; use letters, digits, '.', '_' and '-', at most 64"),
        ("[tasks.a]\ncommand = ['x']\n[tasks.b]\ncommand = ['y']\nrun = 'a'",
         "line 3: the tasks a and b both train for run 'a'; keep one"),
        (task("nice = 20"), "line 3: nice in [tasks.a] = 20 must be a whole number from -20 to 19"),
        (task("nice = 1.0"), "line 3: nice in [tasks.a] = 1.0 must be a whole number from -20 to 19"),
        (task("cpus = 0"), "line 3: cpus in [tasks.a] = 0 must be a number from 0.01 to 4096"),
        (task("[tasks.a.environment]\nA = 'x'\nKOINON_SOCKET = 'y'"),
         "line 5: KOINON_SOCKET is set by the daemon; names that begin with KOINON_ are its own"),
        (task("[tasks.a.environment]\nA = 1"), "line 4: A in [tasks.a.environment] = 1 must be a text"),
        (task("environment = { A = 'x', 'B=' = 'y' }"), "line 3: no variable can be called 'B='"),
        (task("container.image = '--privileged'"),
         "line 3: image in [tasks.a.container] = '--privileged' must be the name of an image, as 'site/defects:3'"),
        (task("container = 'site/defects'"),
         "line 3: container in [tasks.a] = 'site/defects' must be a table: write [tasks.a.container] and its keys "
         "below"),
        (task("[tasks.a.container]\nimage = 'x'\nmounts = ['/data']"),
         "line 5: mounts in [tasks.a.container] = ['/data'] must be a list of SOURCE:TARGET or SOURCE:TARGET:ro, each "
         "target an absolute path"),
        ("tasks.a.command = ['x']\ntasks.a.timeout = 0",
         "line 2: timeout in [tasks.a] = 0 must be at least 1 seconds"),
    ],
)  # fmt: skip
def test_a_value_that_is_wrong_is_named_with_its_line_and_what_it_must_be(edge, text, said):
    assert refusal(edge, text) == said


def test_a_folder_of_zones_is_no_zone(edge):
    assert "must be a time zone by its IANA name" in refusal(edge, "[gate]\nzone = 'Europe'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = \n", "line 1: this is not TOML (invalid value); mend it"),
        ("a = 1\n\n[gate\nmains = true", "line 3: this is not TOML"),
        ("[gate]\nmains = true\nmains = false", "line 3: this is not TOML"),
        ("name = 'x'\nwindows = [", "line 2: this is not TOML (invalid value); mend it"),
    ],
)
def test_what_is_no_toml_is_named_with_its_line(edge, text, said):
    assert refusal(edge, text).startswith(said)


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml cannot be read \(No such file or directory\)"):
        load(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes("name = 'Jürgen'".encode("latin-1"))
    with pytest.raises(UsageError, match="is no text in UTF-8"):
        load(tmp_path / "latin.toml")


# -- lines ----------------------------------------------------------------------------------------------------


def test_what_only_looks_like_a_key_or_a_head_is_none():
    text = '''# [gate]
a = """
[gate]
b = 1 """ # c = 2
d = [ # ]
  "]", 'e = [',
  { f = 1 },
]
g = \'\'\'
[h]\'\'\'\'\'
[[ i . "j.k" ]]
"l\\"m" = 1
n.'o' . p = 2
q = ["""a"""", "]", # "
  2]
r = 1
'''
    tomllib.loads(text)
    assert lines(text) == {
        ("a",): 2, ("d",): 5, ("g",): 9, ("i",): 11, ("i", "j.k"): 11, ("i", "j.k", 'l"m'): 12,
        ("i", "j.k", "n"): 13, ("i", "j.k", "n", "o"): 13, ("i", "j.k", "n", "o", "p"): 13,
        ("i", "j.k", "q"): 14, ("i", "j.k", "r"): 16,
    }  # fmt: skip
    assert line_of(("d", "f"), lines(text)) == 5, "what is in a value has the line of its key"
    assert line_of(("z",), lines(text)) == 1


_VALUES = st.sampled_from(
    ['1', '"a = 1"', '[\n "[x]", # ]\n 2 ]', '"""\nq = 1\n"""', "'''\n[y]\\'''", "{ r = 1, s = [1] }", "07:32:00"]
)  # fmt: skip
_LINES = st.lists(st.tuples(st.sampled_from(["", "# z = 1\n", "\n\n"]), _VALUES), min_size=1, max_size=12)


@given(_LINES)
def test_every_key_is_found_in_the_line_that_it_is_in(pieces):
    text, wanted = "[t]\n", {("t",): 1}
    for number, (before, value) in enumerate(pieces):
        text += before
        wanted["t", f"k{number}"] = text.count("\n") + 1
        text += f"k{number} = {value}\n"
    assert len(tomllib.loads(text)["t"]) == len(pieces)
    assert lines(text) == wanted
