"""How much of what present VMs have booked counts beside what Placement has allocated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.publishers.placement.bookings import CountedBookings
from tests.support.placement import capacity_of

#: Of VCPU, at the end of one slice.
Slice = tuple[float, list[float]]


def counted(*slices: Slice, dedicated: float = 0.0) -> list[list[float]]:
    """What counts of VCPU: for each slice what is booked at its end, and what is allocated at each look."""
    bookings = CountedBookings()
    return [
        [
            bookings.count(
                capacity_of("a", 1.0, None, booked, figures_s=60.0 * number), {"VCPU": allocated, "PCPU": dedicated}
            )["VCPU"]
            for allocated in looks
        ]
        for number, (booked, looks) in enumerate(slices)
    ]


@pytest.mark.parametrize(
    ("slices", "expected"),
    [
        ([(40.0, [40.0])], [[40.0]]),
        # An orphan of 40 vCPUs: what it has is not offered to others.
        ([(80.0, [40.0]), (80.0, [40.0])], [[40.0], [40.0]]),
        # VMs were created since: they take from what is free.
        ([(40.0, [48.0])], [[40.0]]),
        # An orphan beside VMs that were created since.
        ([(80.0, [40.0]), (80.0, [80.0])], [[40.0], [40.0]]),
        # VMs that are not heard of for several slices.
        ([(56.0, [16.0]), (56.0, [32.0]), (56.0, [32.0]), (56.0, [48.0])], [[16.0]] * 4),
        # The orphan has gone.
        ([(80.0, [40.0]), (40.0, [40.0])], [[40.0], [40.0]]),
        # A VM that was deleted shortly before, and is replaced by one of the same size.
        ([(80.0, [76.0]), (76.0, [76.0]), (80.0, [80.0])], [[76.0], [76.0], [80.0]]),
        # Placement has learnt of the orphan: eight slices later it counts.
        ([(80.0, [40.0])] + [(80.0, [80.0])] * 8, [[40.0]] * 8 + [[80.0]]),
        # A stopped VM that is no longer heard of keeps its allocation: it may start again.
        ([(36.0, [40.0])], [[36.0]]),
    ],
)
def test_vms_that_only_one_of_both_sees_are_not_sold_twice(slices: list[Slice], expected: list[list[float]]) -> None:
    assert counted(*slices) == expected


def test_what_a_deleted_vm_leaves_is_not_sold_before_its_absence_was_measured() -> None:
    """A VM of 8 is deleted within the slice; another one that takes its place does not raise the count again."""
    assert counted((40.0, [40.0, 32.0, 36.0, 40.0]), (36.0, [36.0])) == [[40.0, 32.0, 32.0, 32.0], [36.0]]


def test_vm_that_is_deleted_after_another_was_created_is_not_sold_either() -> None:
    """What is allocated returns to what it was, and one of these VMs is not in the figures."""
    assert counted((40.0, [40.0, 48.0, 40.0, 48.0, 40.0])) == [[40.0, 40.0, 32.0, 32.0, 24.0]]


def test_stale_node_keeps_the_least_until_it_has_figures_again() -> None:
    """Its figures stay those of the last slice with samples."""
    bookings, capacity = CountedBookings(), capacity_of("a", 0.0, None, 40.0)
    assert [bookings.count(capacity, {"VCPU": allocated})["VCPU"] for allocated in (40.0, 20.0, 36.0)] == [40, 20, 20]


def test_pinned_vms_are_not_booked_on_shared_cores() -> None:
    assert counted((28.0, [4.0]), dedicated=24.0) == [[4.0]]
    assert counted((20.0, [4.0]), dedicated=24.0) == [[0.0]]


def test_resources_are_counted_apart_and_only_where_they_are_known() -> None:
    bookings = CountedBookings()
    allocated = {"VCPU": 8.0, "MEMORY_MB": 1024.0}
    assert bookings.count(capacity_of("a", 1.0, None, 12.0, 4096.0), allocated) == {"VCPU": 8.0}
    later = capacity_of("a", 1.0, 1.0, 12.0, 512.0, figures_s=120.0)
    assert bookings.count(later, allocated) == {"VCPU": 8.0, "MEMORY_MB": 512.0}


@given(st.lists(st.tuples(st.floats(0, 100), st.lists(st.floats(0, 100), min_size=1)), min_size=1))
def test_count_is_at_most_both_sums_and_only_falls_within_a_slice(slices: list[Slice]) -> None:
    for (booked, looks), counts in zip(slices, counted(*slices), strict=True):
        assert all(0 <= count <= min(booked, allocated) for count, allocated in zip(counts, looks, strict=True))
        assert counts == sorted(counts, reverse=True)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2), st.data())
def test_restart_continues_where_it_ended(slices: list[tuple[float, float]], data: st.DataObject) -> None:
    whole, restarted = CountedBookings(), CountedBookings()
    at = data.draw(st.integers(1, len(slices) - 1))
    for number, (booked, allocated) in enumerate(slices):
        capacity = capacity_of("a", 1.0, 1.0, booked, booked, figures_s=60.0 * number)
        if number == at:
            state, restarted = restarted.state(), CountedBookings()
            restarted.restore(state)
        usages = {"VCPU": allocated, "MEMORY_MB": allocated}
        assert restarted.count(capacity, usages) == whole.count(capacity, usages)
