"""The lab's APIs of nova and Placement."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keystoneauth1.adapter import Adapter
from keystoneauth1.identity import v3
from keystoneauth1.session import Session

_KEYSTONE = "http://127.0.0.1:5000/v3"
_PAGE = 500


class CloudError(Exception):
    """A request that was refused."""


@dataclass(frozen=True, slots=True)
class Server:
    """A VM as nova has it.

    Attributes
    ----------
    id, name, status : str
    host : str
        Empty while it has none.
    instance : str
        Its name in libvirt.
    vcpus, memory_mb : int
    pinned, running : bool
    """

    id: str
    name: str
    status: str
    host: str
    instance: str
    vcpus: int
    memory_mb: int
    pinned: bool
    running: bool


@dataclass(frozen=True, slots=True)
class Provider:
    """A resource provider of Placement: inventories by resource class, and what is allocated of each."""

    inventories: Mapping[str, Mapping[str, Any]]
    usages: Mapping[str, int]

    def capacity(self, resource: str) -> float:
        """What may be allocated in total."""
        record = self.inventories[resource]
        return float((record["total"] - record["reserved"]) * record["allocation_ratio"])


class Placement:
    """Placement as its administrator uses it."""

    def __init__(self, session: Session) -> None:
        self._api = Adapter(session, service_type="placement", default_microversion="1.39", raise_exc=False)

    def call(self, method: str, path: str, body: Any = None, *, accepted: tuple[int, ...] = (200, 201, 204)) -> Any:
        """Send a request and return the JSON of the answer, None if it has none.

        Raises
        ------
        CloudError
        """
        return _call(self._api, method, path, body, accepted)

    def providers(self) -> dict[str, str]:
        """UUID of each provider, by name."""
        return {one["name"]: one["uuid"] for one in self.call("GET", "/resource_providers")["resource_providers"]}

    def provider(self, identity: str) -> Provider:
        """Inventories and usages of a provider."""
        inventories = self.call("GET", f"/resource_providers/{identity}/inventories")["inventories"]
        return Provider(inventories, self.call("GET", f"/resource_providers/{identity}/usages")["usages"])

    def change_inventories(self, identity: str, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of inventories, by resource class."""
        path = f"/resource_providers/{identity}/inventories"
        body = self.call("GET", path)
        for resource, fields in changes.items():
            body["inventories"][resource] = {**body["inventories"].get(resource, {}), **fields}
        self.call("PUT", path, body)

    def allocations(self, identity: str) -> dict[str, dict[str, int]]:
        """Resources of each consumer of a provider."""
        found = self.call("GET", f"/resource_providers/{identity}/allocations")["allocations"]
        return {consumer: one["resources"] for consumer, one in found.items()}


class Nova:
    """Nova as its users and its administrator use it."""

    def __init__(self, session: Session) -> None:
        self._api = Adapter(session, service_type="compute", default_microversion="2.96", raise_exc=False)
        images = _call(Adapter(session, service_type="image"), "GET", "/v2/images", None, (200,))["images"]
        self._image = images[0]["id"]
        self._flavors: dict[str, str] = {one["name"]: one["id"] for one in self._call("GET", "/flavors")["flavors"]}

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return _call(self._api, method, path, body, (200, 201, 202, 204))

    def _flavor(self, vcpus: int, memory_mb: int, pinned: bool) -> str:
        name = f"lab-{vcpus}-{memory_mb}{'-pinned' if pinned else ''}"
        if name not in self._flavors:
            size = {"name": name, "vcpus": vcpus, "ram": memory_mb, "disk": 0}
            identity = self._flavors[name] = self._call("POST", "/flavors", {"flavor": size})["flavor"]["id"]
            if pinned:
                specs = {"extra_specs": {"hw:cpu_policy": "dedicated"}}
                self._call("POST", f"/flavors/{identity}/os-extra_specs", specs)
        return self._flavors[name]

    def create(self, name: str, vcpus: int, memory_mb: int, *, pinned: bool = False, host: str = "") -> str:
        """Ask for a VM and return its id; nova chooses the host, or accepts that one if it has room.

        Raises
        ------
        CloudError
        """
        server = {"name": name, "imageRef": self._image, "flavorRef": self._flavor(vcpus, memory_mb, pinned)}
        body = {"server": {**server, "networks": "none", **({"host": host} if host else {})}}
        return str(self._call("POST", "/servers", body)["server"]["id"])

    def delete(self, identity: str) -> None:
        """Delete a VM; one that is gone is no error."""
        _call(self._api, "DELETE", f"/servers/{identity}", None, (204, 404))

    def stop(self, identity: str) -> None:
        """Shut a VM off; it keeps its allocation."""
        self._call("POST", f"/servers/{identity}/action", {"os-stop": None})

    def servers(self) -> list[Server]:
        """All VMs."""
        found: list[Server] = []
        marker = ""
        while True:
            path = f"/servers/detail?all_tenants=1&limit={_PAGE}{marker}"
            page = self._call("GET", path)["servers"]
            found += map(_server, page)
            if len(page) < _PAGE:
                return found
            marker = f"&marker={page[-1]['id']}"


def _server(one: Mapping[str, Any]) -> Server:
    flavor = one["flavor"]
    return Server(
        id=one["id"],
        name=one["name"],
        status=one["status"],
        host=one["OS-EXT-SRV-ATTR:host"] or "",
        instance=one["OS-EXT-SRV-ATTR:instance_name"],
        vcpus=flavor["vcpus"],
        memory_mb=flavor["ram"],
        pinned=flavor.get("extra_specs", {}).get("hw:cpu_policy") == "dedicated",
        running=one["OS-EXT-STS:vm_state"] in ("active", "resized") and one["OS-EXT-STS:power_state"] == 1,
    )


def _call(api: Adapter, method: str, path: str, body: Any, accepted: tuple[int, ...]) -> Any:
    options = {} if body is None else {"json": body}
    response = api.request(path, method, raise_exc=False, connect_retries=20, connect_retry_delay=1, **options)
    if response.status_code not in accepted:
        raise CloudError(
            f"{method} {path}: HTTP status {response.status_code}: {' '.join(response.text.split())[:300]}"
        )
    return response.json() if response.content else None


def log_in() -> Session:
    """A session of the administrator."""
    auth = v3.Password(
        auth_url=_KEYSTONE,
        username="admin",
        password="admin",  # noqa: S106  # of the lab, which listens on the loopback of its namespace
        project_name="admin",
        user_domain_name="Default",
        project_domain_name="Default",
    )
    return Session(auth=auth, timeout=60)


def host_sizes(lab: Path) -> dict[str, tuple[int, int, int]]:
    """Cores, memory in MB and dedicated cores of each host of the lab, by name."""
    sizes = {}
    for path in sorted((lab / "hosts").iterdir()):
        cores, memory_mb, dedicated = map(int, path.read_text().split())
        sizes[path.name] = (cores, memory_mb, dedicated)
    return sizes


def run_service(lab: Path, command: str, name: str) -> None:
    """``start`` or ``stop`` a service of the lab."""
    script = Path(__file__).resolve().parent / "lab.sh"
    subprocess.run([script, command, lab, name], check=True, timeout=120)
