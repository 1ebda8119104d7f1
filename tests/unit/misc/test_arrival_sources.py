"""Data sets of arrivals: the real layouts in small, and bad files, whose message names the line."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from misc.tracesources.alibaba import read_alibaba_pods
from misc.tracesources.azurepacking import read_azure_packing
from misc.tracesources.cloudfactory import read_cloudfactory
from misc.tracesources.grid import ConversionError
from misc.tracesources.huawei import read_huawei_placement
from misc.tracesources.nova import read_nova_flavors, read_nova_instances
from model.simulation.arrivals import ArrivalList

GB = 1024.0

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of a text, of lines, or of an object as JSON."""

    def write_file(content: Any, name: str = "data") -> Path:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def rows(arrivals: ArrivalList) -> list[tuple[str, float, float, float, float]]:
    arrays = (arrivals.create_s, arrivals.delete_s, arrivals.vcpu, arrivals.memory_mb)
    return list(zip(arrivals.names, *(array.tolist() for array in arrays), strict=True))


def fault(read: Callable[[Path], object], path: Path) -> str:
    """The one line about a bad file, without its folder."""
    with pytest.raises(ConversionError) as raised:
        read(path)
    message = str(raised.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message[len(str(path)) :].lstrip(":, ")


# --- any file ---------------------------------------------------------------------------------------


def cut_and_replaced(draw: st.DrawFn, data: bytes) -> bytes:
    """A file some of whose bytes are replaced, and which may end early."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 6))):
        changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else changed)


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_file_gives_arrivals_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    packing(folder / "zone.sqlite", [(6, 1, 0.25, 0.75), (7, 2, 0, None)])
    texts: list[tuple[Callable[[Path], ArrivalList], bytes]] = [
        (read_alibaba_pods, (PODS + pod("a") + pod("b")).encode()),
        (read_huawei_placement, (EVENTS + "0,4,16,0.0,0\n1,1,1,2.0,0\n0,4,16,55.0,1\n").encode()),
        (read_cloudfactory, json.dumps([generated(), generated(name="b")]).encode()),
        (read_nova_instances, (NOVA + "a,2024-01-02,,1,512\nb,1704153600.5,NULL,1,512\n").encode()),
        (read_nova_instances, json.dumps([{"id": "a", "created": "2024-01-02T00:00Z", "vcpus": 1, "ram": 1}]).encode()),
        (read_packing, (folder / "zone.sqlite").read_bytes()),
    ]
    read, text = data.draw(st.sampled_from(texts))
    path = folder / "damaged"
    path.write_bytes(data.draw(st.composite(cut_and_replaced)(text)))
    try:
        arrivals = read(path)
    except ConversionError as error:
        assert str(error).startswith(str(path))
        return
    assert (arrivals.create_s >= 0).all()
    assert (arrivals.delete_s >= arrivals.create_s).all()
    assert (arrivals.vcpu > 0).all()
    assert (arrivals.memory_mb > 0).all()
    assert (np.diff(arrivals.create_s) >= 0).all()
    assert len(set(arrivals.names)) == len(arrivals) > 0


# --- Alibaba ------------------------------------------------------------------------------------------

PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"


def pod(
    name: str,
    cpu: object = 4000,
    memory: object = 15258,
    created: object = 10,
    deleted: object = 70,
    scheduled: object = 12,
) -> str:
    return f"{name},{cpu},{memory},1,220,V100M16|V100M32,BE,Running,{created},{deleted},{scheduled}\n"


def test_pods_are_vms_in_the_order_of_their_creation(write: Write) -> None:
    path = write(PODS + pod("late", created=50) + pod("early", cpu=11908, memory=47104) + pod("same", created=50))
    arrivals = read_alibaba_pods(path)
    assert rows(arrivals) == [
        ("early", 10.0, 70.0, 11.908, 47104.0),
        ("late", 50.0, 70.0, 4.0, 15258.0),
        ("same", 50.0, 70.0, 4.0, 15258.0),
    ]
    assert arrivals.usage is None
    assert arrivals.notes == []


def test_pods_that_never_ran_or_request_nothing_are_left_out(write: Write) -> None:
    path = write(PODS + pod("a") + pod("pending", scheduled="") + pod("none", memory=0) + pod("none2", cpu=0))
    arrivals = read_alibaba_pods(path)
    assert arrivals.names == ["a"]
    assert arrivals.notes == ["1 VMs left out: never scheduled", "2 VMs left out: no vCPUs or no memory"]


def test_packed_file_with_windows_line_ends_and_a_byte_order_mark(write: Write) -> None:
    text = (PODS + pod("a")).replace("\n", "\r\n")
    assert read_alibaba_pods(write(gzip.compress(b"\xef\xbb\xbf" + text.encode()))).names == ["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "the file is empty"),
        (PODS, "no VM"),
        (PODS + pod("a", scheduled=""), "no VM; 1 VMs left out: never scheduled"),
        (PODS.replace("memory_mib", "memory"), "line 1: no column memory_mib"),
        (PODS.replace("qos", "name"), "line 1: more than one column name"),
        (PODS + pod("a") + "b,1\n", "line 3: 2 columns instead of 11"),
        (PODS + "\n\n" + pod("a", cpu="many"), "line 4, column cpu_milli: 'many' is not a number"),
        (PODS + pod("a", cpu="nan"), "line 2, column cpu_milli: nan is not from 0 to 1e+15"),
        (PODS + pod("a", memory=-5), "line 2, column memory_mib: -5 is not from 0 to 1e+15"),
        (PODS + pod("a", memory="1e300"), "line 2, column memory_mib: 1e300 is not from 0 to 1e+15"),
        (PODS + pod("a", created="inf"), "line 2, column creation_time: inf is not from 0 to 1e+15"),
        (PODS + pod("a", deleted=""), "line 2, column deletion_time: '' is not a number"),
        (PODS + pod("a", deleted=9), "line 2: VM a is deleted before it is created"),
        (PODS + pod("a") + pod("a"), "line 3: VM a occurs twice"),
        (PODS + pod(""), "line 2: the VM has no name"),
        (PODS + '"a', "line 2: unexpected end of data"),
        (PODS + "a" * 200_000, "line 2: field larger than field limit (131072)"),
    ],
)  # fmt: skip
def test_bad_pods_are_named(write: Write, text: str, message: str) -> None:
    assert fault(read_alibaba_pods, write(text)) == message


def test_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for read in (read_alibaba_pods, read_huawei_placement, read_cloudfactory, read_nova_instances):
        assert fault(read, tmp_path / "none") == "No such file or directory"
    assert fault(lambda path: read_azure_packing(path, 48, 1e5), tmp_path / "none") == "No such file or directory"


def test_truncated_gzip_is_named(write: Write) -> None:
    packed = gzip.compress((PODS + "".join(pod(f"p{i}") for i in range(100))).encode())
    assert "end-of-stream marker" in fault(read_alibaba_pods, write(packed[:-20]))


# --- Huawei -------------------------------------------------------------------------------------------

EVENTS = "vmid,cpu,memory,time,type\n"


def test_events_become_vms(write: Write) -> None:
    """VM 1 has no deletion, and the ID 0 is given again to a larger VM."""
    arrivals = read_huawei_placement(write(EVENTS + "0,4,16,0.0,0\n1,1,1,2.0,0\n0,4,16,55.0,1\n0,8,32,83.0,0\n"))
    assert rows(arrivals) == [
        ("vm0", 0.0, 55.0, 4.0, 16 * GB),
        ("vm1", 2.0, math.inf, 1.0, GB),
        ("vm0#2", 83.0, math.inf, 8.0, 32 * GB),
    ]


def test_deletion_without_a_creation_is_counted(write: Write) -> None:
    arrivals = read_huawei_placement(write(EVENTS + "7,4,16,1.0,1\n0,4,16,2.0,0\n"))
    assert arrivals.names == ["vm0"]
    assert arrivals.notes == ["1 VMs left out: deleted without a creation"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (EVENTS, "no VM"),
        ("vmid,cpu,memory,time\n0,4,16,0\n", "line 1: no column type"),
        (EVENTS + "0,4,16,0.0,0\n0,4,16,1.0,0\n", "line 3: VM 0 is created again before its deletion"),
        (EVENTS + "0,4,16,0.0,2\n", "line 2, column type: '2' is neither 0 (creation) nor 1 (deletion)"),
        (EVENTS + "0,4,16,9.0,0\n0,4,16,8.0,1\n", "line 2: VM vm0 is deleted before it is created"),
        (EVENTS + "0,4,16,9.0,0\n0,4,16,NaN,1\n", "line 3, column time: NaN is not from 0 to 1e+15"),
        (EVENTS + "0,four,16,9.0,0\n", "line 2, column cpu: 'four' is not a number"),
    ],
)
def test_bad_events_are_named(write: Write, text: str, message: str) -> None:
    assert fault(read_huawei_placement, write(text)) == message


# --- CloudFactory -------------------------------------------------------------------------------------


def generated(**changes: Any) -> dict[str, Any]:
    """A VM as the generator exports it."""
    return {
        "cpu": 2,
        "mem": 3.5,
        "name": "vm0",
        "id": 0,
        "profile": "low",
        "slice_postponed": 0,
        "slice_lifetime": 0,
        "timesheet": {"0": [True, True], "1": [True, True]},
        "periodicity": False,
        "avg": 4,
        "per": 28,
        "usage": [1, 50, 100, 25],
        "workload": "idle",
        "commands_list": ["idle"],
    } | changes


def test_generated_vms_have_usage_of_their_own(write: Write) -> None:
    late = generated(name="vm1", cpu=1, mem=0.75, slice_postponed=3, slice_lifetime=2, usage=[10, 20])
    arrivals = read_cloudfactory(write([late, generated()]), slice_s=600.0)
    assert rows(arrivals) == [("vm0", 0.0, math.inf, 2.0, 3.5 * GB), ("vm1", 1800.0, 3000.0, 1.0, 768.0)]
    assert arrivals.usage is not None
    assert [usage.tolist() for usage in arrivals.usage if usage is not None] == [
        [np.float32(0.01), 0.5, 1.0, 0.25],
        [np.float32(0.1), np.float32(0.2)],
    ]
    assert arrivals.usage_step_s == 600.0


def test_only_sizes_are_required(write: Write) -> None:
    arrivals = read_cloudfactory(write([{"cpu": 2, "mem": 4}, {"cpu": 4, "mem": 8}]))
    assert rows(arrivals) == [("vm0", 0.0, math.inf, 2.0, 4 * GB), ("vm1", 0.0, math.inf, 4.0, 8 * GB)]
    assert arrivals.usage is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("[]", "no VM"),
        ("{}", "the file: expected array, got object"),
        ("[{", "not JSON: the file ends in the middle (byte 2)"),
        ([{"mem": 4}], "[0]: object missing required field cpu"),
        ([generated(), generated(name="b", cpu="2")], "[1].cpu: expected float, got str"),
        ([generated(), generated()], "[1]: VM vm0 occurs twice"),
        ([generated(mem=-1)], "[0].mem: -1 is not from 0 to 1e+15"),
        ([generated(slice_postponed=-1)], "[0].slice_postponed: -1 is not from 0 to 1e+15"),
        ([generated(slice_lifetime=1.5)], "[0].slice_lifetime: expected int, got float"),
        ([generated(usage=[1, 100.5])], "[0].usage[1]: 100.5 is not from 0 to 100 %"),
        ([generated(usage=[1, None])], "[0].usage[1]: expected float, got null"),
        ('[{"cpu": NaN, "mem": 1}]', "not JSON: invalid character (byte 9)"),
        (b'[{"cpu": 1, "mem": 1, "name": "\xff"}]', "not a list of VMs"),
    ],
)
def test_bad_generated_vms_are_named(write: Write, content: Any, message: str) -> None:
    assert fault(read_cloudfactory, write(content)) == message


# --- Azure packing ------------------------------------------------------------------------------------

VM_TABLE = (
    "CREATE TABLE vm (vmId INTEGER, tenantId INTEGER, vmTypeId INTEGER, priority INTEGER, starttime REAL, endtime REAL)"
)
TYPE_TABLE = "CREATE TABLE vmType (id INTEGER, vmTypeId INTEGER, machineId INTEGER, core REAL, memory REAL, hdd REAL, ssd REAL, nic REAL)"
#: Type 1 is on both machines, type 2 on machine 16 only.
TYPES = [(0, 1, 3, 0.25, 0.5), (1, 1, 16, 0.041667, 0.03125), (2, 2, 16, 0.5, 0.25)]


def packing(
    path: Path,
    vms: list[tuple[Any, ...]],
    types: list[tuple[Any, ...]] = TYPES,
    tables: tuple[str, str] = (VM_TABLE, TYPE_TABLE),
) -> Path:
    """Write VMs of ID, type, start and end."""
    with closing(sqlite3.connect(path)) as database, database:
        for table in tables:
            database.execute(table)
        database.executemany("INSERT INTO vm (vmId, vmTypeId, starttime, endtime) VALUES (?, ?, ?, ?)", vms)
        database.executemany("INSERT INTO vmType (id, vmTypeId, machineId, core, memory) VALUES (?, ?, ?, ?, ?)", types)
    return path


def read_packing(path: Path, machine: int | None = None) -> ArrivalList:
    return read_azure_packing(path, 48.0, 131_072.0, machine)


def test_requests_take_shares_of_a_machine(tmp_path: Path) -> None:
    """Of 48 cores and 131072 MB: 0.041667 are 2.000 cores, 0.03125 are 4096 MB."""
    vms = [(5, 2, 0.5, None), (6, 1, 0.25, 0.75), (7, 1, -3.0, 1.0), (8, 1, -3.0, -1.0)]
    arrivals = read_packing(packing(tmp_path / "zone.sqlite", vms))
    assert rows(arrivals) == [
        ("vm7", 0.0, 86_400.0, 2.0, 4096.0),
        ("vm6", 21_600.0, 64_800.0, 2.0, 4096.0),
        ("vm5", 43_200.0, math.inf, 24.0, 32_768.0),
    ]
    assert arrivals.notes == ["1 VMs left out: ended before the start"]


def test_types_that_a_machine_lacks_are_left_out(tmp_path: Path) -> None:
    arrivals = read_packing(packing(tmp_path / "zone.sqlite", [(5, 2, 0.5, None), (6, 1, 0.25, 0.75)]), machine=3)
    assert rows(arrivals) == [("vm6", 21_600.0, 64_800.0, 12.0, 65_536.0)]
    assert arrivals.notes == ["1 VMs left out: their type does not exist on the machine"]


def test_columns_may_be_text(tmp_path: Path) -> None:
    tables = (VM_TABLE.replace("REAL", "TEXT"), TYPE_TABLE.replace("REAL", "TEXT"))
    arrivals = read_packing(packing(tmp_path / "zone.sqlite", [(6, 1, "0.25", "0.75")], tables=tables))
    assert rows(arrivals) == [("vm6", 21_600.0, 64_800.0, 2.0, 4096.0)]


@pytest.mark.parametrize(
    ("vms", "types", "message"),
    [
        ([], TYPES, "no VM"),
        ([(1, 1, 0, 1)], [], "table vmType is empty"),
        ([(1, 1, None, 1)], TYPES, "vm 1.starttime: 'None' is not a number"),
        ([(1, 1, "soon", 1)], TYPES, "vm 1.starttime: 'soon' is not a number"),
        ([(1, 1, 0, math.inf)], TYPES, "vm 1.endtime: inf is not from -1e+15 to 1e+15"),
        ([(1, 1, 2, 1)], TYPES, "vm 1: VM vm1 is deleted before it is created"),
        ([(1, 1, 0, 1), (1, 1, 0, 1)], TYPES, "vm 1: VM vm1 occurs twice"),
        ([(1, 1, 0, 1)], [(0, 1, 3, 1.5, 0.5)], "vmType 1 of machine 3.core: 1.5 is not from 0 to 1"),
        ([(1, 1, 0, 1)], [(0, 1, 3, 0.5, None)], "vmType 1 of machine 3.memory: 'None' is not a number"),
    ],
)
def test_bad_requests_are_named(tmp_path: Path, vms: Any, types: Any, message: str) -> None:
    assert fault(read_packing, packing(tmp_path / "zone.sqlite", vms, types)) == message


def test_machine_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = packing(tmp_path / "zone.sqlite", [(1, 1, 0, 1)])
    assert fault(lambda path: read_packing(path, machine=4), path) == "no VM type of machine 4"


def test_file_that_is_no_packing_trace_is_named(tmp_path: Path, write: Write) -> None:
    assert fault(read_packing, write("vmId,vmTypeId\n")) == "not an SQLite file"
    assert fault(read_packing, write("")) == "not an SQLite file"
    assert fault(read_packing, write(b"SQLite format 3\0" + b"x" * 500)) == "file is not a database"
    empty = tmp_path / "empty.sqlite"
    with closing(sqlite3.connect(empty)) as database, database:
        database.execute("CREATE TABLE other (a)")
    assert fault(read_packing, empty) == "no table vm"
    path = tmp_path / "column.sqlite"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(VM_TABLE.replace("endtime", "stop"))
    assert fault(read_packing, path) == "table vm has no column endtime"


def test_database_is_not_changed(tmp_path: Path) -> None:
    path = packing(tmp_path / "zone #1?.sqlite", [(6, 1, 0.25, 0.75)])
    before = path.read_bytes()
    read_packing(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- nova ---------------------------------------------------------------------------------------------

#: 2024-01-02T00:00:00Z.
DAY2 = 1_704_153_600.0


def test_servers_of_the_command_line_client(write: Write) -> None:
    """``openstack server list --all-projects --long -c ... -f json``: flavours by name, no deletion."""
    servers = [
        {"ID": "b", "Name": "web", "Status": "ACTIVE", "Flavor": "m1.large", "Created At": "2024-01-02T06:00:00Z"},
        {"ID": "a", "Name": "web", "Status": "ACTIVE", "Flavor": "m1.small", "Created At": "2024-01-02T03:00:00Z"},
    ]
    path = write(
        [
            {"ID": "1", "Name": "m1.small", "RAM": 2048, "VCPUs": 1},
            {"ID": "4", "Name": "m1.large", "RAM": 8192, "VCPUs": 4},
        ],
        "flavors",
    )
    arrivals = read_nova_instances(write(servers), read_nova_flavors(path))
    assert rows(arrivals) == [
        ("a", 3 * 3600.0, math.inf, 1.0, 2048.0),
        ("b", 6 * 3600.0, math.inf, 4.0, 8192.0),
    ]
    assert arrivals.origin_s == DAY2


def test_servers_of_the_api_have_their_flavour_in_them(write: Write) -> None:
    """``GET /servers/detail?all_tenants=1&deleted=1`` of microversion 2.47 and later."""
    server = {
        "id": "a",
        "name": "x",
        "created": "2024-01-02T00:00:10Z",
        "OS-SRV-USG:launched_at": "2024-01-02T00:00:20.000000",
        "OS-SRV-USG:terminated_at": "2024-01-02T01:00:00.000000",
        "flavor": {"vcpus": 2, "ram": 4096, "disk": 20, "original_name": "m1.medium", "extra_specs": {}},
    }
    running = server | {"id": "b", "OS-SRV-USG:terminated_at": None}
    assert rows(read_nova_instances(write({"servers": [server, running]}))) == [
        ("a", 10.0, 3600.0, 2.0, 4096.0),
        ("b", 10.0, math.inf, 2.0, 4096.0),
    ]


def test_export_of_the_table_of_instances(write: Write) -> None:
    """``deleted`` is 0 or the row's id there, and NULL is written in several ways."""
    lines = [
        "created_at,updated_at,deleted_at,id,uuid,display_name,vcpus,memory_mb,deleted",
        "2024-01-02 00:00:30,NULL,2024-01-03 00:00:00.500000,1,u1,x,2,4096,1",
        "2024-01-02 00:00:20,NULL,NULL,2,u2,x,4,8192,0",
        '"2024-01-02 00:00:10",,\\N,3,"u3","a ""quoted"", name",1,512,0',
    ]
    assert rows(read_nova_instances(write("\n".join(lines)))) == [
        ("u3", 10.0, math.inf, 1.0, 512.0),
        ("u2", 20.0, math.inf, 4.0, 8192.0),
        ("u1", 30.0, 86_400.5, 2.0, 4096.0),
    ]


def test_own_list_with_unix_seconds(write: Write) -> None:
    text = f"name,created,deleted,vcpus,ram\na,{DAY2 + 1:.0f},{DAY2 + 2.5},1,512\nb,{DAY2:.0f},0,2,512\nc,{DAY2 + 3:.0f},,2,512\n"
    assert rows(read_nova_instances(write(text))) == [
        ("b", 0.0, math.inf, 2.0, 512.0),
        ("a", 1.0, 2.5, 1.0, 512.0),
        ("c", 3.0, math.inf, 2.0, 512.0),
    ]


def test_time_zone_is_taken_into_account(write: Write) -> None:
    text = "id,created_at,vcpus,ram\na,2024-01-02T02:00:00+02:00,1,512\nb,2024-01-02T02:00:00,1,512\n"
    assert read_nova_instances(write(text)).create_s.tolist() == [0.0, 7200.0]


NOVA = "id,created_at,deleted_at,vcpus,memory_mb\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ([], "no VM"),
        (NOVA, "no VM"),
        ({"flavor": 1}, "not a list of objects"),
        ([1], "[0]: not an object"),
        ("[{", "not JSON: the file ends in the middle (byte 2)"),
        (b'["\xff"]', "not a list of objects"),
        (NOVA + "a,,,1,512\n", "line 2: no time of creation (created_at, created, launched_at)"),
        (NOVA + "a,yesterday,,1,512\n", "line 2: creation: 'yesterday' is not a time"),
        (NOVA + "a,1704153600000,,1,512\n", "line 2: creation: '1704153600000' is not a time"),
        (NOVA + "a,2024-01-02,nan,1,512\n", "line 2: deletion: 'nan' is not a time"),
        (NOVA + "a,2024-01-02,0001-01-01,1,512\n", "line 2: deletion: '0001-01-01' is not a time"),
        (NOVA + "a,2024-01-02,2024-01-01,1,512\n", "line 2: VM a is deleted before it is created"),
        (NOVA + "a,2024-01-02,,-1,512\n", "line 2: vCPUs: -1 is not from 0 to 1e+15"),
        (NOVA + "a,2024-01-02,,1,much\n", "line 2: memory: 'much' is not a number"),
        (NOVA + "a,2024-01-02,,1,512\na,2024-01-02,,1,512\n", "line 3: VM a occurs twice"),
        (NOVA + ",2024-01-02,,1,512\n", "line 2: the VM has no name"),
        (NOVA + "a,2024-01-02,,1\n", "line 2: 4 columns instead of 5"),
        ([{"id": "a", "created": "2024-01-02"}], "[0]: neither vCPUs and memory (vcpus, vcpu, flavor_vcpus, memory_mb, ram, ram_mb, flavor_ram) nor a flavour"),
        ([{"id": "a", "created": "2024-01-02", "Flavor": "m1.tiny"}], "[0]: the size of flavour m1.tiny is unknown"),
    ],
)  # fmt: skip
def test_bad_instances_are_named(write: Write, content: Any, message: str) -> None:
    assert fault(read_nova_instances, write(content)) == message


def test_bad_flavours_are_named(write: Write) -> None:
    assert fault(read_nova_flavors, write("[]")) == "no flavour"
    assert fault(read_nova_flavors, write([{"RAM": 1, "VCPUs": 1}])) == "[0]: the flavour has no name"
    assert (
        fault(read_nova_flavors, write([{"Name": "x", "RAM": "1 GB", "VCPUs": 1}]))
        == "[0]: memory: '1 GB' is not a number"
    )


def test_list_in_csv_quoted_as_the_client_does(write: Write, tmp_path: Path) -> None:
    path = tmp_path / "servers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["ID", "Flavor", "Created At"])
        writer.writerow(["a", "4", "2024-01-02T00:00:00Z"])
    flavors = read_nova_flavors(write('"ID","Name","RAM","VCPUs"\n"4","m1.large",8192,4\n', "flavors"))
    assert rows(read_nova_instances(path, flavors)) == [("a", 0.0, math.inf, 4.0, 8192.0)]
