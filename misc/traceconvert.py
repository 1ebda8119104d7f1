#!/usr/bin/env python3
"""Converts usage data to traces: Bitbrains (GWA-T-12), Azure (2017 and 2019), any Prometheus server.

The public data sets hold the usage of each VM, but not the machine on which it ran. The VMs of the node, its capacity
and its overhead are therefore options, and its usage is the sum of its VMs. A Prometheus server has the node itself.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from model.cli.main import require_libraries
from model.cli.parser import Parser, number, whole_number

with require_libraries("offline"):
    from misc.tracesources.azure import AZURE_EPOCH_START, AzureOptions, convert_azure
    from misc.tracesources.bitbrains import BitbrainsOptions, convert_bitbrains
    from misc.tracesources.grid import Conversion, ConversionError, NodeOptions, TraceOptions, utc
    from misc.tracesources.prometheus import PrometheusOptions, convert_prometheus
    from misc.tracesources.textfiles import LARGEST
    from model.common.atomic_files import write_atomically
    from model.common.text import printable
    from model.replay.trace import TraceError, parse_trace


T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Convert the data of the command line to a trace; returns the exit code."""
    args = build_parser().parse_args(argv)
    try:
        _check_lengths(args)
        if not args.output.parent.is_dir():
            raise ConversionError(f"{args.output.parent}: no such folder")
        conversion: Conversion = args.convert(args)
        _write(args.output, conversion.encode())
        for note in conversion.notes:
            print(f"traceconvert.py: {printable(note)}", file=sys.stderr)
    except ConversionError as error:
        print(f"traceconvert.py: {printable(str(error))}", file=sys.stderr)
        return 2
    except PermissionError as error:
        print(f"traceconvert.py: {printable(str(error.filename))}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _write(path: Path, data: bytes) -> None:
    try:
        parse_trace(data)
    except TraceError as error:
        raise ConversionError(f"the data does not make a valid trace: {error}") from None
    try:
        write_atomically(path, data)
    except OSError as error:
        raise ConversionError(f"{path}: {error.strerror or error}") from None


def _text(text: str) -> str:
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not a name")
    return text


def _time(text: str) -> float:
    """Parse Unix seconds or ISO 8601, by default in UTC."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            # Python 3.10 does not accept the Z.
            timestamp = datetime.fromisoformat(re.sub("[zZ]$", "+00:00", text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither Unix seconds nor ISO 8601") from None
        return (timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=timezone.utc)).timestamp()
    if not 0.0 <= seconds <= 1e11:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1e11")
    return seconds


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or not text.isprintable():
        raise argparse.ArgumentTypeError("the URL of a server is http://HOST[:PORT][/PREFIX]")
    return text


def build_parser() -> Parser:
    """Build the parser of the command line."""
    parser = Parser(prog="traceconvert.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="SOURCE")

    bitbrains = commands.add_parser(
        "bitbrains",
        help="Bitbrains VM files, one per VM (GWA-T-12: fastStorage, rnd)",
        description="Put the VMs of Bitbrains files (GWA-T-12: fastStorage, rnd) on one node.",
    )
    bitbrains.add_argument(
        "files", metavar="FILE", type=Path, nargs="+", help="file of a VM, or a folder of such files"
    )
    bitbrains.add_argument("--vms", metavar="N", type=whole_number(1), help="only N VMs, picked at random")
    bitbrains.add_argument("--seed", metavar="S", type=int, default=0, help="seed of the random choice (default 0)")
    _add_common(bitbrains)
    _add_node(bitbrains)
    bitbrains.set_defaults(convert=_convert_bitbrains)

    azure = commands.add_parser(
        "azure",
        help="Azure Public Dataset, VM traces V1 (2017) and V2 (2019)",
        description="Put VMs of the Azure Public Dataset (V1, V2) on one node. Files may be gzipped.",
    )
    azure.add_argument("--vmtable", metavar="FILE", type=Path, required=True, help="vmtable.csv[.gz]")
    azure.add_argument("--readings", metavar="FILE", type=Path, required=True, nargs="+", help="vm_cpu_readings files")
    selection = azure.add_mutually_exclusive_group(required=True)
    selection.add_argument("--vm", metavar="ID", type=_text, nargs="+", help="these VMs")
    selection.add_argument("--deployment", metavar="ID", type=_text, help="the VMs of a deployment")
    selection.add_argument(
        "--vms", metavar="N", type=whole_number(1), help="N random VMs that run between --start and --end"
    )
    azure.add_argument("--seed", metavar="S", type=int, default=0, help="seed of the random choice (default 0)")
    azure.add_argument("--reading", choices=("avg", "max"), default="avg", help="avgcpu (default) or maxcpu")
    azure.add_argument("--cores-above", metavar="N", type=number(0, LARGEST), help="value of the bucket '>24'")
    azure.add_argument("--memory-above", metavar="GB", type=number(0, LARGEST), help="value of the bucket '>64'")
    azure.add_argument(
        "--epoch-start",
        metavar="TIME",
        type=_time,
        default=float(AZURE_EPOCH_START),
        help=f"time of second 0 of the data (default {utc(AZURE_EPOCH_START)}; the real time is not published)",
    )
    azure.add_argument(
        "--memory-usage-share",
        metavar="X",
        type=number(0, 1),
        help="share (0 to 1) of a VM's memory to assume as used; by default the trace has no memory usage, as the data",
    )
    _add_common(azure)
    _add_node(azure)
    azure.set_defaults(convert=_convert_azure)

    prometheus = commands.add_parser(
        "prometheus",
        help="a Prometheus server that scrapes node_exporter and a libvirt exporter",
        description="One node and its domains from the history of a Prometheus server.",
    )
    prometheus.add_argument("--server", metavar="URL", type=_url, required=True, help="e.g. http://prometheus:9090")
    prometheus.add_argument(
        "--node-instance", metavar="LABEL", type=_text, required=True, help="`instance` of the node_exporter"
    )
    prometheus.add_argument(
        "--libvirt-instance",
        metavar="LABEL",
        type=_text,
        help="`instance` of the libvirt exporter (default: any on the same host)",
    )
    prometheus.add_argument(
        "--rate-s",
        metavar="S",
        type=whole_number(1),
        help="window of rates (default: a step, and at least four scrape intervals)",
    )
    prometheus.add_argument("--bearer-token-file", metavar="FILE", type=Path, help="file with a bearer token")
    prometheus.add_argument(
        "--timeout-s", metavar="S", type=number(0.1, 86400), default=30.0, help="timeout of a query (default 30)"
    )
    _add_common(prometheus, own_period=False)
    prometheus.set_defaults(convert=_convert_prometheus)
    return parser


def _add_common(parser: argparse.ArgumentParser, *, own_period: bool = True) -> None:
    group = parser.add_argument_group("the trace")
    period = "Unix seconds or ISO 8601 (UTC); only whole slices are taken"
    if own_period:
        period += "; default: the period of the data"
    group.add_argument("--output", metavar="FILE", type=Path, required=True, help="the trace to write")
    group.add_argument(
        "--node-name",
        metavar="NAME",
        type=_text,
        required=own_period,
        help="name of the node in the trace" + ("" if own_period else " (default: --node-instance)"),
    )
    group.add_argument("--slice-s", metavar="S", type=whole_number(1), required=True, help="length of a slice")
    group.add_argument(
        "--scope-s", metavar="S", type=whole_number(1), required=True, help="length of a scope, whole slices"
    )
    group.add_argument(
        "--historical", metavar="H", type=whole_number(0), default=3, help="earlier scopes in the window (default 3)"
    )
    group.add_argument(
        "--step-s",
        metavar="S",
        type=whole_number(1),
        default=300,
        help="step of the grid of samples (default 300)",
    )
    group.add_argument(
        "--hold",
        metavar="N",
        type=whole_number(0),
        default=2,
        help="fill gaps of at most N steps with the last sample (default 2)",
    )
    group.add_argument("--start", metavar="TIME", type=_time, required=not own_period, help=period)
    group.add_argument("--end", metavar="TIME", type=_time, required=not own_period, help="the same")


def _add_node(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the node, which is not in the data")
    group.add_argument("--node-cores", metavar="N", type=number(0.1, LARGEST), required=True, help="capacity")
    group.add_argument("--node-memory-mb", metavar="MB", type=number(1, LARGEST), required=True, help="capacity")
    group.add_argument(
        "--least-known",
        metavar="X",
        type=number(0, 1),
        default=0.9,
        help="its usage is missing at a step where VMs with less than this share of the booked CPU or memory have a "
        "sample, 0 to 1 (default 0.9)",
    )
    group.add_argument(
        "--node-cpu-overhead",
        metavar="N",
        type=number(0, LARGEST),
        default=0.0,
        help="usage of the node itself (default 0)",
    )
    group.add_argument(
        "--node-memory-overhead-mb",
        metavar="MB",
        type=number(0, LARGEST),
        default=0.0,
        help="the same for memory (default 0)",
    )


def _check_lengths(args: argparse.Namespace) -> None:
    if args.slice_s % args.step_s:
        raise ConversionError(f"--slice-s: {args.slice_s} is not a multiple of --step-s, {args.step_s}")
    if args.scope_s % args.slice_s:
        raise ConversionError(f"--scope-s: {args.scope_s} is not a multiple of --slice-s, {args.slice_s}")
    if args.start is not None and args.end is not None and args.end <= args.start:
        raise ConversionError(f"--end: {utc(args.end)} is not after --start, {utc(args.start)}")


def _convert_bitbrains(args: argparse.Namespace) -> Conversion:
    data = _options(BitbrainsOptions, args)
    return convert_bitbrains(data, _trace_options(args), _node_options(args))


def _convert_azure(args: argparse.Namespace) -> Conversion:
    data = _options(AzureOptions, args)
    return convert_azure(data, _trace_options(args), _node_options(args))


def _convert_prometheus(args: argparse.Namespace) -> Conversion:
    if args.node_name is None:
        args.node_name = args.node_instance
    return convert_prometheus(_options(PrometheusOptions, args), _trace_options(args))


def _trace_options(args: argparse.Namespace) -> TraceOptions:
    return _options(TraceOptions, args)


def _node_options(args: argparse.Namespace) -> NodeOptions:
    return NodeOptions(
        cores=args.node_cores,
        memory_mb=args.node_memory_mb,
        cpu_overhead=args.node_cpu_overhead,
        memory_overhead_mb=args.node_memory_overhead_mb,
        least_known=args.least_known,
    )


def _options(kind: type[T], args: argparse.Namespace) -> T:
    """The options whose names are those of the fields of a dataclass."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
