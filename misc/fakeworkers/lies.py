"""Pages that look valid and are wrong: an unguarded scheduler would see a free node."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

_NODE_CPU = rb"(?:\w+_global_cpu_(?:user|kernel|idle|iowait)|node_cpu_seconds_total\{[^}]*\})"
_VM_CPU = rb"(?:\w+_domain_\w+_cpu_cputime|libvirt_domain_info_cpu_time_seconds_total\{[^}]*\})"
_BUSY = rb'(?:\w+_global_cpu_(?:user|kernel)|node_cpu_seconds_total\{[^}]*mode="(?:user|system)"\})'
_USER = rb'(?:\w+_global_cpu_user|node_cpu_seconds_total\{[^}]*mode="user"\})'
_VCPUS = rb"(?:\w+_domain_\w+_cpu_alloc|libvirt_domain_info_virtual_cpus\{[^}]*\})"
_TIME = rb"(?:\w+_global_probe_epoch|node_time_seconds)"
_AVAILABLE = rb"(?:\w+_global_memory_available|node_memory_MemAvailable_bytes)"
_TOTAL = rb"(?:\w+_global_memory_total|node_memory_MemTotal_bytes)"

#: How far the clock of a node with a wrong clock is off, s.
SKEW_S = 3600.0


@dataclass(slots=True)
class Past:
    """What a lie remembers of the pages of one endpoint.

    Attributes
    ----------
    first : bytes
        The page when the fault began.
    number : int
        Number of requests before this one.
    cached : bytes
        The page that a cache repeats.
    """

    first: bytes
    number: int = 0
    cached: bytes = b""


@dataclass(frozen=True, slots=True)
class Lie:
    """A wrong page.

    Attributes
    ----------
    description : str
    change : callable
        Returns the page in place of the right one; None responds with an HTTP error.
    delays_s : tuple of float
        Delays of the responses, one after the other, s.
    late : bool
        Whether the page is of the time of the response, not of the request.
    """

    description: str
    change: Callable[[bytes, Past], bytes | None] = lambda page, _: page
    delays_s: tuple[float, ...] = (0.0,)
    late: bool = False


@dataclass(slots=True)
class Liar:
    """Applies a lie to the successive pages of one worker."""

    lie: Lie
    _past: dict[str, Past] = field(default_factory=dict)

    def delay_s(self, endpoint: str) -> float:
        """The delay of the next response."""
        number = self._past[endpoint].number if endpoint in self._past else 0
        return self.lie.delays_s[number % len(self.lie.delays_s)]

    def answer(self, endpoint: str, page: bytes) -> bytes | None:
        """The page of the next response."""
        past = self._past.setdefault(endpoint, Past(page))
        changed = self.lie.change(page, past)
        past.number += 1
        return changed


def _hold(names: bytes) -> Callable[[bytes, Past], bytes]:
    """Keep the values of some metrics."""
    pattern = re.compile(rb"^(%b) (\S+)$" % names, re.MULTILINE)

    def change(page: bytes, past: Past) -> bytes:
        held: dict[bytes, bytes] = dict(pattern.findall(past.first))
        return pattern.sub(lambda match: b"%b %b" % (match[1], held.get(match[1], match[2])), page)

    return change


def _slow_down(names: bytes, factor: float) -> Callable[[bytes, Past], bytes]:
    """Let counters grow by a part of what they grow by."""
    pattern = re.compile(rb"^(%b) (\S+)$" % names, re.MULTILINE)

    def change(page: bytes, past: Past) -> bytes:
        first = {name: float(value) for name, value in pattern.findall(past.first)}

        def slower(match: re.Match[bytes]) -> bytes:
            start = first.get(match[1], float(match[2]))
            return b"%b %r" % (match[1], start + (float(match[2]) - start) / factor)

        return pattern.sub(slower, page)

    return change


def _set(names: bytes, value: Callable[[float], float | bytes]) -> Callable[[bytes, Past], bytes]:
    """Replace the values of some metrics."""
    pattern = re.compile(rb"^(%b) (\S+)$" % names, re.MULTILINE)

    def text(number: float | bytes) -> bytes:
        return number if isinstance(number, bytes) else b"%d" % number if number == int(number) else b"%r" % number

    return lambda page, _: pattern.sub(lambda match: match[1] + b" " + text(value(float(match[2]))), page)


def _omit(names: bytes) -> Callable[[bytes, Past], bytes]:
    """Remove the lines of some metrics."""
    pattern = re.compile(rb"^(?:%b)[ {].*\n" % names, re.MULTILINE)
    return lambda page, _: pattern.sub(b"", page)


def _cache(page: bytes, past: Past) -> bytes:
    """Renew the page at every third request."""
    if past.number % 3 == 0:
        past.cached = page
    return past.cached


def _cache_without_time(page: bytes, past: Past) -> bytes:
    return _omit(rb"node_time_seconds")(_cache(page, past), past)


def _without_time(page: bytes, past: Past) -> bytes:
    return _omit(rb"node_time_seconds")(page, past)


def _end_with(line: bytes) -> Callable[[bytes, Past], bytes]:
    """Add lines; ``PREFIX`` is the prefix of the probe."""

    def change(page: bytes, _: Past) -> bytes:
        prefix = re.search(rb"^(\w+)_global_", page, re.MULTILINE)
        return page + line.replace(b"PREFIX", prefix[1] if prefix else b"node") + b"\n"

    return change


def _merge_names(page: bytes, _: Past) -> bytes:
    """Give all VMs one name, as the probe does with names that differ in "-" alone."""
    page = re.sub(rb"^(\w+_domain_)instance[0-9a-f]+_", rb"\1instance_", page, flags=re.MULTILINE)
    return re.sub(rb'domain="instance-[0-9a-f]+"', b'domain="instance"', page)


_DOMAIN = re.compile(rb'^\w+_domain_(instance[0-9a-f]+)_|domain="(instance-[0-9a-f]+)"', re.MULTILINE)


def _of_some_vms(change: Callable[[bytes, Past], bytes]) -> Callable[[bytes, Past], bytes]:
    """Apply a change to the lines of all VMs but the first one, or of the only one."""

    def change_some(page: bytes, past: Past) -> bytes:
        names = sorted({plain or label for plain, label in _DOMAIN.findall(past.first)})
        if not names:
            return page
        mark = b"|".join(map(re.escape, names[1:] or names))
        lines = page.splitlines(keepends=True)
        chosen = [bool(re.search(mark, line)) for line in lines]
        changed = change(b"".join(line for line, one in zip(lines, chosen, strict=True) if one), past)
        rest = b"".join(line for line, one in zip(lines, chosen, strict=True) if not one)
        return changed + rest

    return change_some


def _error_of_libvirt(page: bytes, _: Past) -> bytes | None:
    return None if b"libvirt_up" in page else page


def _no_libvirt_metrics(page: bytes, _: Past) -> bytes:
    return b"" if b"libvirt_up" in page else page


#: Description and change by name.
LIES: dict[str, Lie] = {
    "cpu-still": Lie("CPU counters stand still, the time goes on", _hold(rb"(?:%b|%b)" % (_NODE_CPU, _VM_CPU))),
    "node-cpu-still": Lie("CPU counters of the node stand still", _hold(_NODE_CPU)),
    "busy-still": Lie("busy CPU counters of the node stand still, idle ones go on", _hold(_BUSY)),
    "cpu-slow": Lie(
        "CPU counters of node and VMs grow at a tenth of their pace",
        _slow_down(rb"(?:%b|%b)" % (_NODE_CPU, _VM_CPU), 10),
    ),
    "vms-cpu-still": Lie("CPU counters of the VMs stand still", _hold(_VM_CPU)),
    "cached": Lie("a cache renews the page at every third request", _cache),
    "cached-no-time": Lie("as cached, without the time of the page", _cache_without_time),
    "uneven": Lie("responses take 0 and 4 s in turn, without the time of the page", _without_time, (0.0, 4.0)),
    "uneven-late": Lie("as uneven, and the page is of the end of that time", _without_time, (0.0, 4.0), late=True),
    "mode-missing": Lie(
        "one CPU mode is missing", _omit(rb'\w+_global_cpu_user|node_cpu_seconds_total\{[^}]*"user"\}')
    ),
    "mode-nan": Lie("one CPU mode is NaN", _set(_USER, lambda _: b"NaN")),
    "idle-missing": Lie("idle time is missing", _omit(rb'\w+_global_cpu_idle|node_cpu_seconds_total\{[^}]*"idle"\}')),
    "clock-ahead": Lie(
        "the clock of the node is an hour ahead", _set(_TIME, lambda t: t + SKEW_S * (1000 if t > 1e11 else 1))
    ),
    "clock-behind": Lie(
        "the clock of the node is an hour behind", _set(_TIME, lambda t: t - SKEW_S * (1000 if t > 1e11 else 1))
    ),
    "libvirt-500": Lie("the libvirt exporter responds with an HTTP error", _error_of_libvirt),
    "libvirt-empty": Lie("the page of the libvirt exporter is empty", _no_libvirt_metrics),
    "libvirt-down": Lie("libvirt_up is 0", _set(rb"libvirt_up", lambda _: 0.0)),
    "vms-missing": Lie(
        "the VMs vanish from the page, the node stays busy",
        _omit(rb"\w+_domain_\w+|libvirt_domain_\w+|libvirt_domains_number"),
    ),
    "some-vms-missing": Lie(
        "all VMs but one vanish from the page, the node stays busy",
        _of_some_vms(_omit(rb"\w+_domain_\w+|libvirt_domain_\w+")),
    ),
    "some-vms-still": Lie("CPU counters of all VMs but one stand still", _of_some_vms(_hold(_VM_CPU))),
    "some-merged": Lie("all VMs but one have one name", _of_some_vms(_merge_names)),
    "alloc-small": Lie("the vCPUs of VMs are 1", _set(_VCPUS, lambda _: 1.0)),
    "alloc-missing": Lie("the vCPUs of VMs are missing", _omit(rb"\w+_domain_\w+_cpu_alloc|\w+_virtual_cpus")),
    "alloc-zero": Lie("the vCPUs of VMs are 0", _set(_VCPUS, lambda _: 0.0)),
    "alloc-negative": Lie("the vCPUs of VMs are negative", _set(_VCPUS, lambda n: -n)),
    "alloc-absurd": Lie("the vCPUs of VMs are a billion", _set(_VCPUS, lambda _: 1e9)),
    "memory-available": Lie("more memory is available than there is", _set(_AVAILABLE, lambda n: 2 * n + 2**40)),
    "memory-unit": Lie(
        "memory of the node is in a unit that is 1024 times smaller",
        _set(rb"(?:%b|%b)" % (_TOTAL, _AVAILABLE), lambda n: n * 1024),
    ),
    "cores-absurd": Lie("the node has a billion cores", _set(rb"\w+_global_cpu_total", lambda _: 1e9)),
    "merged-names": Lie("all VMs have one name", _merge_names),
    "labelled-size": Lie(
        "a line with labels has the name of the size", _end_with(b'PREFIX_global_cpu_total{cpu="all"} 1000000')
    ),
    "perf-names": Lie(
        "perf counters have the names of fields",
        _end_with(b"PREFIX_global_perf_cpu 1000000\nPREFIX_global_perf_mem 1000000000\nPREFIX_global_perf_cpu_usage 0"),
    ),
}
