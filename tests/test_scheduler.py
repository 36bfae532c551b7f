"""Section 11: when ticks fall, on a clock that is moved by hand."""
import random
from types import SimpleNamespace

import pytest

import statbadger
from conftest import FakeClock

START = 1700000000000.0         # ms; a multiple of 1,000 and of 10,000


class SleepingBell:
    """A bell that nobody rings: a wait lets the clock go on, a little longer than was asked."""

    def __init__(self, clock, over=0.0):
        self.clock, self.over, self.events = clock, over, []

    def wait(self, seconds=None):
        until = self.clock.steady + seconds * 1000
        for at, change in list(self.events):
            if at <= until:
                self.clock.advance(max(0.0, at - self.clock.steady))
                self.events.remove((at, change))
                change()
        self.clock.advance(max(0.0, until - self.clock.steady) + self.over)
        return 0


class Machine:
    """A schedule, its clock, and the loop of the agent around them; ticks() gives the grid points held."""

    def __init__(self, intervals=(1000,), wall=START + 400, over=0.0, not_before=0):
        self.clock = FakeClock(wall, 5000.0)
        self.bell = SleepingBell(self.clock, over)
        self.schedule = statbadger.Schedule(self.clock, list(intervals), not_before)
        self.held = []                          # (grid point, wall, monotonic)

    def tick(self):
        agent = SimpleNamespace(schedule=self.schedule, clock=self.clock, bell=self.bell, left=())
        for _ in range(100000):
            point = statbadger.Agent.wait_for_tick(agent)
            if point is not None:
                self.schedule.begin(point)
                self.held.append((point, self.clock.now, self.clock.steady))
                return point
        raise AssertionError('no tick in 100,000 rounds')

    def ticks(self, n, cost=lambda: 0.0):
        out = []
        for _ in range(n):
            out.append(self.tick())
            self.clock.advance(cost())
        return out

    def until(self, monotonic):
        """Ticks until the monotonic clock has passed a time."""
        out = []
        while self.clock.steady < monotonic:
            out.append(self.tick())
        return out


def seconds(points):
    return [(p - int(START)) / 1000.0 for p in points]


# -- the grid ---------------------------------------------------------------------------------

def test_a_day_of_ticks_has_86400_consecutive_seconds_whatever_they_cost():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice = random.Random(seed)
    machine = Machine()
    points = machine.ticks(86400, lambda: dice.uniform(0.3, 900))
    assert seconds(points) == [float(i) for i in range(1, 86401)]
    assert machine.schedule.skipped == 0 and machine.schedule.late == 0
    assert max(wall - point for point, wall, _ in machine.held) < 5
    assert min(wall - point for point, wall, _ in machine.held) > -2


@pytest.mark.parametrize('rate', [1.0005, 0.9995, 1.01, 0.99])
def test_a_wall_clock_that_is_slewed_gives_every_second_once(rate):
    machine = Machine()
    points = []
    for _ in range(2000):
        points.append(machine.tick())
        before = machine.clock.steady
        machine.clock.advance(5)
        # what the next wait is going to take, the wall clock takes at another rate
        machine.clock.now += (rate - 1) * (1000 + machine.clock.steady - before)
    assert seconds(points) == [float(i) for i in range(1, 2001)]
    assert machine.schedule.skipped == 0


@pytest.mark.parametrize('interval, first', [(10000, 10.0), (100, 0.5), (2500, 2.5), (60000, 40.0), (250, 0.5)])
def test_ticks_are_multiples_of_the_interval_on_the_wall_clock(interval, first):
    machine = Machine([interval], START + 420)
    points = machine.ticks(5)
    assert [p % interval for p in points] == [0] * 5
    assert seconds(points) == [first + i * interval / 1000.0 for i in range(5)]


def test_several_intervals_give_the_points_of_all_of_them_each_once():
    machine = Machine([1000, 2500, 1000])
    assert seconds(machine.ticks(9)) == [1, 2, 2.5, 3, 4, 5, 6, 7, 7.5]
    machine = Machine([5000, 2000])
    assert seconds(machine.ticks(8)) == [2, 4, 5, 6, 8, 10, 12, 14]
    assert machine.schedule.skipped == 0


@pytest.mark.parametrize('interval, at, first', [
    (1000, 400, 1.0), (1000, 500, 1.0), (1000, 600, 2.0), (1000, 0, 1.0), (1000, 999, 2.0),
    (100, 40, 0.1), (100, 60, 0.2), (60000, 0, 40.0), (60000, 15000, 100.0),
    (300000, 0, 400.0), (300000, 90000, 400.0), (3600000, 2700000, 6400.0)])
def test_the_first_tick_is_at_least_half_an_interval_after_the_priming_read(interval, at, first):
    # START is 1700000000 s: 20 s into its minute, 200 s into its 300 s, 800 s into its hour
    machine = Machine([interval], START + at, not_before=START + at + interval / 2.0 - 1)
    assert seconds([machine.tick()]) == [first]


def test_waking_too_late_by_some_ms_does_not_add_up():
    machine = Machine(over=7.0)
    points = machine.ticks(1000)
    assert seconds(points) == [float(i) for i in range(1, 1001)]
    assert max(wall - point for point, wall, _ in machine.held) < 10


# -- late and skipped -------------------------------------------------------------------------

def test_a_tick_that_takes_too_long_makes_the_next_ones_skipped_not_late():
    machine = Machine()
    assert seconds(machine.ticks(2)) == [1, 2]
    machine.clock.advance(2700)                 # 4.7: 3 and 4 have passed
    assert seconds(machine.ticks(2)) == [5, 6]
    assert machine.schedule.skipped == 2 and machine.schedule.late == 0


def test_skipped_ticks_are_counted_also_with_several_intervals():
    machine = Machine([1000, 2500])
    machine.ticks(1)
    machine.clock.advance(4100)                 # 5.1: 2, 2.5, 3, 4 and 5 have passed
    assert seconds(machine.ticks(1)) == [6]
    assert machine.schedule.skipped == 5


def test_a_tick_is_late_when_more_than_a_tenth_of_the_interval_has_passed():
    machine = Machine()
    machine.ticks(1)
    for over, late in ((90.0, 0), (110.0, 1), (500.0, 2), (20.0, 2)):
        machine.bell.over = over
        machine.ticks(1)
        assert machine.schedule.late == late
        assert machine.schedule.lateness == pytest.approx(over, abs=2)


def test_a_process_that_was_stopped_for_half_a_minute_goes_on_without_a_burst():
    machine = Machine()
    machine.ticks(3)
    machine.bell.events.append((machine.clock.steady + 500, lambda: machine.clock.advance(30200)))
    before = machine.clock.steady
    points = machine.ticks(4)
    assert machine.clock.steady - before >= 30200 + 2000
    assert points == sorted(set(points))
    # at most one tick belongs to the time before; then the grid again
    assert seconds(points)[1:] == [34.0, 35.0, 36.0]
    # every second between the first tick and the last is held or counted
    assert len(machine.held) + machine.schedule.skipped == 36


def test_the_first_tick_after_a_stop_is_stamped_with_the_time_of_its_reading():
    machine = Machine()
    machine.ticks(3)
    machine.bell.events.append((machine.clock.steady + 500, lambda: machine.clock.advance(30200)))
    machine.ticks(2)
    assert max(wall - point for point, wall, _ in machine.held) <= 1000


def test_a_tick_whose_time_comes_while_a_signal_is_looked_after_is_held_late_and_not_skipped():
    machine = Machine()
    machine.ticks(2)
    held, reloads = [], [998 - 300, 5]          # ms that they take
    machine.clock.advance(300)                  # 2.3; a reload until 2.998, and another one until 3.003

    def reload():
        machine.clock.advance(reloads.pop(0))
        machine.schedule.change([1000])

    def wait(seconds=None):
        return statbadger.RANG if reloads else SleepingBell.wait(machine.bell, seconds)
    agent = SimpleNamespace(schedule=machine.schedule, clock=machine.clock, bell=SimpleNamespace(wait=wait),
                            attend=reload, left=())
    while len(held) < 2:
        point = statbadger.Agent.wait_for_tick(agent)
        if point is not None:
            machine.schedule.begin(point)
            held.append(point)
    assert seconds(held) == [3, 4] and machine.schedule.skipped == 0


# -- steps of the wall clock ------------------------------------------------------------------

def step(machine, ms, after=300.0):
    """The wall clock is set while the agent sleeps."""
    def change():
        machine.clock.now += ms
    machine.bell.events.append((machine.clock.steady + after, change))


@pytest.mark.parametrize('ms', [3600000, 3600300, 61000, 1000 * 86400 * 365])
def test_a_step_forward_gives_no_burst_and_ticks_go_on_each_second(ms):
    machine = Machine()
    machine.ticks(5)
    began = machine.clock.steady
    step(machine, ms)
    points = machine.until(began + 10000)
    assert 9 <= len(points) <= 11
    assert points == sorted(set(points))
    old = [p for p in points if p < machine.clock.now - 20000]
    assert len(old) <= 1                        # the one that was being waited for
    assert all(p % 1000 == 0 for p in points)


def test_a_step_back_of_an_hour_is_taken_over_and_ticks_go_on_each_second():
    machine = Machine()
    machine.ticks(5)
    began = machine.clock.steady
    step(machine, -3600000)
    points = machine.until(began + 10000)
    assert 8 <= len(points) <= 11
    assert points[1:] == sorted(set(points[1:]))
    assert abs(points[-1] - machine.clock.now) < 1100


@pytest.mark.parametrize('ms', [-30000, -300, -1000, -1500, -999.7, -59000, -2000])
def test_a_step_back_of_up_to_a_minute_repeats_no_time_stamp_and_ticks_go_on(ms):
    machine = Machine()
    machine.ticks(5)
    began = machine.clock.steady
    step(machine, ms)
    machine.until(began + 60000)
    points = [point for point, wall, steady in machine.held]
    assert points == sorted(set(points))
    assert all(p % 1000 == 0 for p in points)
    times = [steady for point, wall, steady in machine.held]
    assert max(b - a for a, b in zip(times, times[1:])) <= 3100      # a small step is waited out
    assert min(b - a for a, b in zip(times, times[1:])) >= 500


def test_after_a_step_back_of_half_a_minute_stamps_and_wall_clock_meet_again():
    machine = Machine()
    machine.ticks(5)
    began = machine.clock.steady
    step(machine, -30000)
    machine.until(began + 900000)
    point, wall, steady = machine.held[-1]
    assert abs(point - wall) <= 1000
    points = [p for p, _, _ in machine.held]
    assert points == sorted(set(points)) and machine.schedule.skipped == 0


def test_a_step_back_by_a_little_leaves_the_next_second_where_it_is():
    machine = Machine()
    assert seconds(machine.ticks(5)) == [1, 2, 3, 4, 5]
    step(machine, -300)
    assert seconds(machine.ticks(3)) == [6, 7, 8]
    assert machine.held[5][2] - machine.held[4][2] == pytest.approx(1300, abs=5)


def test_random_steps_of_a_minute_at_most_never_repeat_a_time_stamp():
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice = random.Random(seed)
    for interval in (1000, 100, 10000):
        machine = Machine([interval])
        machine.ticks(2)
        for _ in range(200):
            ms = dice.choice([-1, 1]) * dice.choice([0.4, 30, 300, 999.5, 1000, 5000, 20000])
            ahead = machine.schedule.last - machine.clock.now
            if max(ahead, 0) - ms < 50000:
                machine.clock.now += ms
            machine.ticks(dice.randrange(1, 4), lambda: dice.uniform(0, interval * 0.8))
        points = [p for p, _, _ in machine.held]
        assert points == sorted(set(points))
        assert all(p % interval == 0 for p in points)


@pytest.mark.parametrize('wall', [400.0, 4102444800400.0])
def test_a_clock_that_says_1970_or_2100_works_like_any_other(wall):
    machine = Machine(wall=wall)
    assert [p - int(wall - 400) for p in machine.ticks(3)] == [1000, 2000, 3000]


def test_a_clock_that_is_set_right_after_the_start_gives_no_burst():
    machine = Machine(wall=400.0)
    machine.ticks(2)
    machine.clock.now = START
    began = machine.clock.steady
    points = machine.until(began + 5000)
    assert len(points) <= 6 and points == sorted(set(points))


def test_long_intervals_look_at_the_wall_clock_while_they_wait():
    machine = Machine([3600000], START)
    machine.bell.events.append((machine.clock.steady + 60000, lambda: setattr(
        machine.clock, 'now', machine.clock.now + 1800000)))
    point = machine.tick()
    assert point % 3600000 == 0
    assert machine.clock.now - point < 11000
