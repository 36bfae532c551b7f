"""The delta engine: numbers worked out by hand."""
import math

import pytest
import statbadger
from statbadger import (BUSY, COUNTER, COUNTER32, GAUGE, IDENTITY, RATIO, REAL, SHARE, CPU, DISK, NETWORK, Metric,
                        Rates, Table)

PLAIN = Table('t', labels=('thing',), columns=tuple(Metric(n, COUNTER, '', '') for n in ('a', 'b', 'c', 'd')))
MIXED = Table('t', labels=('thing',), columns=(
    Metric('number', IDENTITY, '', ''), Metric('a', COUNTER, '', ''), Metric('level', GAUGE, '', ''),
    Metric('ms', COUNTER32, 'ms/s', ''), Metric('busy', BUSY, 'percent', '', of=('ms',)),
    Metric('mean', RATIO, 'ms', '', of=('ms',), over=('a',)), Metric('bits', COUNTER, '', '', of=('a',), scale=8)))


def feed(rates, table, when, *rows, **more):
    """{flat name: value} of a reading; holes are left out. rows: (label, columns)."""
    found = [(table, (label,) if label else (), row) for label, row in rows]
    series, values = rates.feed(found, when, more.get('narrow', False))
    assert len(series) == len(values)
    return {s.flat: v for s, v in zip(series, values) if v == v}


def test_the_first_reading_primes_and_the_second_divides_by_the_time_that_passed():
    rates = Rates()
    assert feed(rates, PLAIN, 10.0, ('x', [1, 2, 3, 4])) == {}
    assert feed(rates, PLAIN, 12.5, ('x', [6, 2, 13, 4])) == {'t.a.x': 2, 't.b.x': 0, 't.c.x': 4, 't.d.x': 0}


def test_a_new_row_counts_from_what_it_is_known_to_have_stood_at():
    rates = Rates()
    rates.feed([(PLAIN, ('x',), [1, 1, 1, 1])], 10.0)
    found = [(PLAIN, ('x',), [3, 3, 3, 3]), (PLAIN, ('born',), [4, 6, 8, 0], [0, 0, 0, 0]), (PLAIN, ('found',), [9, 9, 9, 9])]
    series, values = rates.feed(found, 12.0)
    seen = {s.flat: v for s, v in zip(series, values) if v == v}
    assert {name: seen.get(name) for name in ('t.a.x', 't.a.born', 't.b.born', 't.c.born', 't.d.born', 't.a.found')} == {
        't.a.x': 1, 't.a.born': 2, 't.b.born': 3, 't.c.born': 4, 't.d.born': 0, 't.a.found': None}
    found = [(PLAIN, ('x',), [3, 3, 3, 3]), (PLAIN, ('born',), [5, 6, 8, 0], [0, 0, 0, 0])]
    series, values = rates.feed(found, 13.0)        # known by now: its own last reading counts
    assert dict(zip([s.flat for s in series], values))['t.a.born'] == 1


def test_further_labels_are_no_part_of_the_flat_name_and_vanish_when_empty():
    table = Table('t', labels=('thing',), further=('id', 'image'), columns=(Metric('level', GAUGE, '', ''),))
    found = [(table, ('web', '12ab', ''), [1]), (table, ('web', '77cd', 'x'), [2]), (table, ('db', '', ''), [3])]
    series, values = Rates().feed(found, 1.0)
    assert [(s.flat, s.keys, s.values) for s in series] == [
        ('t.level.web', ('thing', 'id'), ('web', '12ab')), ('t.level.db', ('thing',), ('db',))]
    assert values == [1, 3]                         # of two with one name the first counts


def test_gauges_show_at_once():
    assert feed(Rates(), MIXED, 1.0, ('x', [7, 1, 42, 3])) == {'t.level.x': 42}


def test_a_column_that_fell_gives_no_point_and_the_others_do():
    rates = Rates()
    feed(rates, PLAIN, 0.0, ('x', [100, 100, 100, 100]))
    assert feed(rates, PLAIN, 1.0, ('x', [99, 101, 50, 103])) == {'t.b.x': 1, 't.d.x': 3}
    assert feed(rates, PLAIN, 2.0, ('x', [100, 101, 51, 103])) == {'t.a.x': 1, 't.b.x': 0, 't.c.x': 1, 't.d.x': 0}


def test_when_more_than_half_of_the_counters_fell_the_whole_row_is_primed_anew():
    rates = Rates()
    feed(rates, PLAIN, 0.0, ('x', [100, 100, 100, 100]), ('y', [1, 1, 1, 1]))
    assert feed(rates, PLAIN, 1.0, ('x', [9, 9, 9, 500]), ('y', [2, 2, 2, 2])) == {
        't.a.y': 1, 't.b.y': 1, 't.c.y': 1, 't.d.y': 1}
    assert feed(rates, PLAIN, 2.0, ('x', [10, 9, 9, 501]), ('y', [2, 2, 2, 2]))['t.d.x'] == 1


def test_another_identity_primes_the_row_anew():
    rates = Rates()
    feed(rates, MIXED, 0.0, ('x', [8, 10, 0, 10]))
    assert feed(rates, MIXED, 1.0, ('x', [9, 20, 5, 20])) == {'t.level.x': 5}
    assert feed(rates, MIXED, 2.0, ('x', [9, 21, 5, 20]))['t.a.x'] == 1


def test_a_row_that_was_gone_is_primed_when_it_returns():
    rates = Rates()
    feed(rates, PLAIN, 0.0, ('x', [1, 1, 1, 1]), ('y', [1, 1, 1, 1]))
    feed(rates, PLAIN, 1.0, ('y', [2, 2, 2, 2]))
    assert feed(rates, PLAIN, 2.0, ('x', [9, 9, 9, 9]), ('y', [3, 3, 3, 3])) == {
        't.a.y': 1, 't.b.y': 1, 't.c.y': 1, 't.d.y': 1}
    assert feed(rates, PLAIN, 3.0, ('x', [10, 9, 9, 9]), ('y', [3, 3, 3, 3]))['t.a.x'] == 1


def test_rows_may_change_places():
    rates = Rates()
    feed(rates, PLAIN, 0.0, ('x', [1, 1, 1, 1]), ('y', [5, 5, 5, 5]))
    found = feed(rates, PLAIN, 1.0, ('y', [7, 5, 5, 5]), ('x', [2, 1, 1, 1]))
    assert (found['t.a.x'], found['t.a.y']) == (1, 2)


@pytest.mark.parametrize('old, new, narrow, rate', [
    (4294967290, 4, False, 10),                 # a 32-bit column wraps on every kernel
    (2147483649, 4, False, 2147483651),         # from above 2^31
    (2147483648, 4, False, None),               # below, it was a reset
    (3221225473, 2147483648, False, 3221225471),
    (3221225473, 2147483649, False, None),
    (4294967290, 4294967289, False, None),      # by a little: no tick is long enough for all of 2^32
    (4294967296, 4, False, None),               # it never had 32 bits
])
def test_a_32_bit_column_wraps_when_it_falls_from_above_two_to_the_31(old, new, narrow, rate):
    rates = Rates()
    feed(rates, MIXED, 0.0, ('x', [8, 1, 0, old]))
    assert feed(rates, MIXED, 1.0, ('x', [8, 2, 0, new]), narrow=narrow).get('t.ms.x') == rate


def test_on_a_32_bit_kernel_all_counters_wrap():
    for narrow, expected in ((True, 10), (False, None)):
        rates = Rates()
        feed(rates, PLAIN, 0.0, ('x', [4294967290, 1, 1, 1]))
        assert feed(rates, PLAIN, 1.0, ('x', [4, 1, 1, 1]), narrow=narrow).get('t.a.x') == expected


def test_wraps_are_no_falls():
    rates = Rates()
    feed(rates, PLAIN, 0.0, ('x', [4294967295] * 4))
    assert feed(rates, PLAIN, 1.0, ('x', [0] * 4), narrow=True) == {'t.%s.x' % c: 1 for c in 'abcd'}


def test_ratios_over_nothing_and_what_depends_on_a_fallen_column_are_absent():
    rates = Rates()
    feed(rates, MIXED, 0.0, ('x', [8, 10, 0, 100]))
    assert feed(rates, MIXED, 2.0, ('x', [8, 14, 0, 106])) == {
        't.a.x': 2, 't.level.x': 0, 't.ms.x': 3, 't.busy.x': pytest.approx(0.3), 't.mean.x': 1.5, 't.bits.x': 16}
    assert 't.mean.x' not in feed(rates, MIXED, 3.0, ('x', [8, 14, 0, 107]))
    found = feed(rates, MIXED, 4.0, ('x', [8, 15, 0, 50]))
    assert sorted(found) == ['t.a.x', 't.bits.x', 't.level.x']


def test_busy_is_at_most_100_percent():
    rates = Rates()
    feed(rates, MIXED, 0.0, ('x', [8, 0, 0, 0]))
    assert feed(rates, MIXED, 1.0, ('x', [8, 0, 0, 1500]))['t.busy.x'] == 100


def test_cpu_states_are_clamped_one_by_one_and_add_to_100():
    rates = Rates()
    feed(rates, CPU, 0.0, ('', [100, 50, 20, 1000, 30, 1, 2, 3, 10, 5]))
    # user +10 of which guest +4, nice +5 of which guest_nice 0, system +5, idle -3, iowait -7, steal +5
    found = feed(rates, CPU, 1.0, ('', [110, 55, 25, 997, 23, 1, 2, 8, 14, 5]))
    assert found == {'cpu.user': 24, 'cpu.nice': 20, 'cpu.system': 20, 'cpu.idle': 0, 'cpu.iowait': 0, 'cpu.irq': 0,
                     'cpu.softirq': 0, 'cpu.steal': 20, 'cpu.guest': 16, 'cpu.guest_nice': 0}
    assert math.isclose(sum(found.values()), 100)


def test_guest_time_that_grew_more_than_user_time_leaves_user_at_zero():
    rates = Rates()
    feed(rates, CPU, 0.0, ('', [100, 0, 0, 0, 0, 0, 0, 0, 50, 0]))
    found = feed(rates, CPU, 1.0, ('', [101, 0, 0, 1, 0, 0, 0, 0, 52, 0]))
    assert (found['cpu.user'], found['cpu.guest'], found['cpu.idle']) == (0, 200 / 3, 100 / 3)


def test_four_columns_of_an_old_kernel_give_four_states():
    rates = Rates()
    feed(rates, CPU, 0.0, ('', [1, 1, 1, 1]))
    assert feed(rates, CPU, 1.0, ('', [2, 1, 1, 4])) == {
        'cpu.user': 25, 'cpu.nice': 0, 'cpu.system': 0, 'cpu.idle': 75}


def test_states_that_did_not_grow_at_all_are_unknown():
    rates = Rates()
    feed(rates, CPU, 0.0, ('', [1, 1, 1, 1]))
    assert feed(rates, CPU, 1.0, ('', [1, 1, 1, 1])) == {}


def test_disk_ratios_are_those_of_iostat():
    rates = Rates()
    #                       reads m  sect  ms writes m sect ms io ms weighted discards m sect ms
    feed(rates, DISK, 0.0, ('sda', [8 << 32, 100, 0, 800, 50, 200, 0, 1600, 80, 0, 100, 200, 10, 0, 80, 5]))
    found = feed(rates, DISK, 2.0, ('sda', [8 << 32, 104, 0, 864, 70, 206, 0, 1696, 110, 3, 900, 1200, 10, 0, 80, 5]))
    assert {k.split('.')[1]: v for k, v in found.items()} == {
        'reads': 2, 'reads_merged': 0, 'read_sectors': 32, 'read_time': 10, 'writes': 3, 'writes_merged': 0,
        'write_sectors': 48, 'write_time': 15, 'io': 3, 'io_time': 400, 'io_weighted_time': 500, 'discards': 0,
        'discards_merged': 0, 'discard_sectors': 0, 'discard_time': 0, 'read_thruput': 16384, 'write_thruput': 24576,
        'util': 40, 'await': 5, 'read_await': 5, 'write_await': 5, 'queue': 0.5, 'request_size': 8}


def test_no_time_between_two_readings_gives_no_rates():
    rates = Rates()
    feed(rates, NETWORK, 5.0, ('eth0', list(range(16))))
    assert feed(rates, NETWORK, 5.0, ('eth0', list(range(1, 17)))) == {}


def test_the_first_of_two_rows_with_one_name_counts():
    rates = Rates()
    feed(rates, PLAIN, 0.0, ('x', [1, 1, 1, 1]), ('x', [100, 1, 1, 1]))
    assert feed(rates, PLAIN, 1.0, ('x', [2, 1, 1, 1]), ('x', [200, 1, 1, 1]))['t.a.x'] == 1


def test_the_layout_is_the_same_object_while_the_rows_are_the_same():
    rates = Rates()
    one, _ = rates.feed([(PLAIN, ('x',), [1, 1, 1, 1])], 0.0)
    two, _ = rates.feed([(PLAIN, ('x',), [2, 1, 1, 1])], 1.0)
    three, _ = rates.feed([(PLAIN, ('y',), [2, 1, 1, 1])], 2.0)
    assert one is two and three is not two


def test_a_filter_leaves_out_what_nobody_wants():
    rates = Rates(lambda name: not name.startswith('t.b'))
    feed(rates, PLAIN, 0.0, ('x', [1, 1, 1, 1]), ('y', [1, 1, 1, 1]))
    assert sorted(feed(rates, PLAIN, 1.0, ('x', [2, 1, 1, 1]), ('y', [1, 1, 1, 1]))) == [
        't.a.x', 't.a.y', 't.c.x', 't.c.y', 't.d.x', 't.d.y']


def test_whole_numbers_that_no_double_holds_are_noticed():
    table = Table('m', columns=(Metric('a', GAUGE, 'B', ''), Metric('b', REAL, '', '')))
    for value, large in ((1 << 53, False), ((1 << 53) + 1, True)):
        rates = Rates()
        assert feed(rates, table, 0.0, ('', [value, 0.5])) == {'m.a': value, 'm.b': 0.5}
        assert rates.large == large


def test_shares_of_a_row_do_not_leak_into_another():
    table = Table('s', labels=('n',), columns=tuple(Metric(n, SHARE, 'percent', '') for n in 'ab'))
    rates = Rates()
    feed(rates, table, 0.0, ('x', [0, 0]), ('y', [0, 0]))
    assert feed(rates, table, 1.0, ('x', [1, 3]), ('y', [5, 5])) == {
        's.a.x': 25, 's.b.x': 75, 's.a.y': 50, 's.b.y': 50}


class Gathered:
    """A part that yields what .rows says, read as in a thread of its own."""

    def __init__(self, tree):
        self.rows = []
        self.parts = statbadger.Parts('m', [lambda tree, options, memory: iter(self.rows)], None, tree, print)

    def at(self, when, *rows):
        self.rows = list(rows)
        return self.parts.gather(float(when))

    def rated(self, late, fresh):
        return {s.flat: v for series, values in self.parts.rated(late, fresh) for s, v in zip(series, values) if v == v}


LATE = statbadger.Table('t', (statbadger.Metric('n', statbadger.COUNTER, '', ''), statbadger.Metric('g', statbadger.GAUGE, '', '')),
                        ('who',))


def test_what_came_too_late_for_its_tick_and_what_is_fresh_are_one(host):
    """Nothing moved since the late one; what it saw is not lost."""
    read = Gathered(host({}))
    assert read.rated([], read.at(1, (LATE, ('a',), [500, 7]))) == {'t.g.a': 7}
    late, fresh = read.at(2, (LATE, ('a',), [600, 8])), read.at(3, (LATE, ('a',), [600, 9]))
    assert read.rated(late, fresh) == {'t.n.a': 50, 't.g.a': 9}
    assert read.rated(read.at(4, (LATE, ('a',), [630, 1])), []) == {'t.n.a': 30, 't.g.a': 1}
    assert read.rated([], read.at(5, (LATE, ('a',), [640, 1]))) == {'t.n.a': 10, 't.g.a': 1}


def test_a_first_reading_that_is_late_is_the_base(host):
    read = Gathered(host({}))
    late, fresh = read.at(1, (LATE, ('a',), [500, 7])), read.at(2, (LATE, ('a',), [530, 7]))
    assert read.rated(late, fresh) == {'t.n.a': 30, 't.g.a': 7}


def test_a_row_that_began_in_a_late_reading_counts_from_where_it_stood(host):
    read = Gathered(host({}))
    read.rated([], read.at(1, (LATE, ('a',), [500, 7])))
    late = read.at(2, (LATE, ('a',), [500, 7]), (LATE, ('b',), [40, 1], [10, 1]))
    assert read.rated(late, read.at(3, (LATE, ('a',), [500, 7]), (LATE, ('b',), [50, 1]))) == {
        't.n.a': 0, 't.g.a': 7, 't.n.b': 20, 't.g.b': 1}
