"""Section 10: the spool, its accounts, and what a sender does when its link does not."""
import errno
import math
import random
import threading
import time
from array import array
from types import SimpleNamespace

import pytest

import statbadger
from conftest import FakeClock, options, role
from sinks import BlackHole, TcpSink, until
from statbadger import Done, Later, Next, Refused, Reject, Send

WHO = {key: '' for key in statbadger.IDENTITY_KEYS}
WIDE = {n: statbadger.Layout(tuple(statbadger.Series('t', 'n%d' % i, '', statbadger.GAUGE, (), ()) for i in range(n)))
        for n in (1, 2, 10, 60)}


def frame(number=1, width=1, layout=None, time_ms=None):
    layout = layout or WIDE[width]
    return statbadger.Frame(number * 1000 if time_ms is None else time_ms, number, WHO, layout,
                            array('d', [number] * len(layout.series)))


def cursor(spool, name='x', delivery='sent', **more):
    one = statbadger.Cursor(spool, name, role(options(**more), None, delivery))
    spool.cursors.append(one)
    return one


def adds_up(one):
    count = one.count
    assert count['accepted'] == (count['acknowledged'] + count['sent'] + count['dropped'] + count['quarantined']
                                 + count['damaged'] + len(one.frames)), count
    assert 0 <= one.pinned <= len(one.frames)


@pytest.fixture
def spool():
    made = []

    def make(most=1 << 20):
        made.append(statbadger.Spool(most))
        return made[-1]
    yield make
    for one in made:
        for each in one.cursors:
            each.bell.close()


# -- the spool against a model of plain lists -------------------------------------------------

class Model:
    """One emitter's ticks in plain lists: what waits, what is under way, where everything went."""

    def __init__(self, batch):
        self.batch, self.waiting, self.under_way, self.gone = batch, [], 0, {}

    def put(self, numbers, where):
        self.gone.setdefault(where, []).extend(numbers)


def weight(models, widths):
    """The bytes of the ticks that anybody holds, each once, and of their layouts, each once."""
    held = set(n for model in models for n in model.waiting)
    return sum(400 + 8 * widths[n] for n in held) + sum(240 + 8 * w for w in set(widths[n] for n in held))


@pytest.mark.parametrize('most', [4000, 20000, 1 << 20])
def test_every_account_adds_up_at_every_step_of_random_operations(spool, most):
    seed = random.randrange(1 << 30)
    print('seed', seed)
    for round_ in range(25):
        dice = random.Random(seed + round_)
        one, number, widths = spool(most), 0, {}
        cursors = [cursor(one, str(i), dice.choice(['sent', 'acknowledged']), batch=dice.choice([1, 3, 100]))
                   for i in range(dice.randrange(1, 4))]
        models = [Model(c.batch) for c in cursors]
        for _ in range(300):
            which = dice.randrange(len(cursors))
            each, model = cursors[which], models[which]
            what = dice.choice(['tick', 'tick', 'tick', 'next', 'next', 'break', 'some', 'give up', 'refuse'])
            if what == 'tick':
                number += 1
                widths[number] = dice.choice([1, 2, 10, 60])
                one.accept(frame(number, widths[number]))
                for m in models:
                    m.waiting.append(number)
                while weight(models, widths) > most:
                    oldest = [m.waiting[m.under_way] for m in models if len(m.waiting) > m.under_way]
                    if not oldest or min(oldest) >= number:
                        break
                    for m in models:
                        if len(m.waiting) > m.under_way and m.waiting[m.under_way] == min(oldest):
                            m.put([m.waiting.pop(m.under_way)], 'dropped')
            elif what == 'next':
                model.put(model.waiting[:model.under_way], each.delivery)
                del model.waiting[:model.under_way]
                got = each.next_batch()
                model.under_way = len(got)
                assert [f.iteration for f in got] == model.waiting[:model.under_way]
                assert len(got) <= model.batch and bool(got) == bool(model.waiting)
            elif what == 'break':
                each.pinned = model.under_way = 0
            elif what == 'some' and model.under_way:
                n = dice.randrange(1, model.under_way + 1)
                with one.lock:
                    each.acknowledge(n)
                model.put(model.waiting[:n], each.delivery)
                del model.waiting[:n]
                model.under_way -= n
            elif what == 'give up' and not dice.randrange(20):
                each.give_up()
                model.put(model.waiting, 'dropped')
                model.waiting, model.under_way = [], 0
            elif what == 'refuse' and model.under_way == 1:
                assert each.refuse(False)
                model.put(model.waiting[:1], 'quarantined')
                del model.waiting[:1]
                model.under_way = 0
            for c, m in zip(cursors, models):
                adds_up(c)
                assert [f.iteration for f in c.frames] == m.waiting and c.pinned == m.under_way
                for where in ('sent', 'acknowledged', 'dropped', 'quarantined', 'damaged'):
                    assert c.count[where] == len(m.gone.get(where, []))
            assert one.bytes == weight(models, widths)
        for c in cursors:
            c.give_up()
        assert one.bytes == 0 and not one.holders and not one.layouts


def test_memory_stays_within_its_bound_also_when_every_tick_has_a_layout_of_its_own(spool):
    one, layout = spool(100000), None
    each = cursor(one)
    for i in range(1, 500):
        series = tuple(statbadger.Series('t', 'n%d' % j, '', statbadger.GAUGE, (), ()) for j in range(20))
        layout = statbadger.Layout(series, layout)
        one.accept(frame(i, layout=layout))
        # a tick of 20 series: 400 + 160, its layout 240 + 160 and 250 for each series that the one before had not
        assert one.bytes == 5960 * len(each.frames) - (5000 if each.frames[0].iteration == 1 else 0) <= 100000
    assert len(each.frames) == 16 and each.count['dropped'] == 499 - 16


def test_a_large_host_whose_series_stay_fills_the_spool_with_its_numbers_only(spool):
    one, layout = spool(1 << 20), WIDE[60]
    each = cursor(one)
    for i in range(1, 3000):
        one.accept(frame(i, layout=layout))
    assert len(each.frames) == ((1 << 20) - 240 - 480) // (400 + 480)
    changed = statbadger.Layout(layout.series[1:], layout)
    assert (layout.bytes, changed.bytes) == (240 + 480, 240 + 472)


def test_the_oldest_is_dropped_first_and_the_newest_stays(spool):
    one = spool(1900)                           # a layout of 248 and four ticks of 408
    each = cursor(one)
    for i in range(1, 11):
        one.accept(frame(i))
    assert [f.iteration for f in each.frames] == [7, 8, 9, 10]
    assert each.count['dropped'] == 6
    one.accept(frame(11, 60))                   # too much for the bound all alone: it stays all the same
    assert [f.iteration for f in each.frames] == [11]


def test_what_is_under_way_is_never_dropped(spool):
    one = spool(1900)
    each = cursor(one, batch=3)
    for i in range(1, 5):
        one.accept(frame(i))
    batch = each.next_batch()
    for i in range(5, 30):
        one.accept(frame(i))
        adds_up(each)
    assert [f.iteration for f in batch] == [1, 2, 3]
    assert [f.iteration for f in each.frames] == [1, 2, 3, 29]
    assert [f.iteration for f in each.next_batch()] == [29]
    assert each.count['sent'] == 3 and each.count['dropped'] == 25


def test_a_tick_that_one_emitter_still_needs_is_kept_once_for_all(spool):
    one = spool()
    quick, slow = cursor(one, 'quick'), cursor(one, 'slow')
    for i in range(1, 4):
        one.accept(frame(i))
    assert one.bytes == 248 + 3 * 408
    quick.next_batch(), quick.next_batch()
    assert one.bytes == 248 + 3 * 408 and len(slow.frames) == 3 and quick.frames == []
    slow.next_batch(), slow.next_batch()
    assert one.bytes == 0


def test_a_slow_emitter_pays_for_the_bound_and_not_a_quick_one(spool):
    one = spool(1900)
    quick, slow = cursor(one, 'quick'), cursor(one, 'slow')
    for i in range(1, 101):
        one.accept(frame(i))
        assert [f.iteration for f in quick.next_batch()] == [i]
    quick.next_batch()
    assert quick.count['dropped'] == 0 and quick.count['sent'] == 100
    assert slow.count['dropped'] == 96 and len(slow.frames) == 4


def test_ticks_carry_the_run_and_a_number_without_gaps(spool):
    one = spool()
    each = cursor(one)
    for i in range(1, 6):
        one.accept(frame(i))
    assert [f.seq for f in each.frames] == [1, 2, 3, 4, 5]
    assert len(set(f.run for f in each.frames)) == 1 and each.frames[0].run
    assert spool().run != one.run


# -- interval and flush -----------------------------------------------------------------------

def test_an_interval_of_its_own_thins_the_ticks_to_its_multiples(spool):
    one = spool()
    each, all_ = cursor(one, interval=10), cursor(one, 'all')
    for second in range(1, 36):
        one.accept(frame(second))
    assert [f.time_ms for f in each.frames] == [10000, 20000, 30000]
    assert each.count['accepted'] == 3 and all_.count['accepted'] == 35


def test_flush_gathers_ticks_and_sends_all_of_them_together(spool):
    one = spool()
    each = cursor(one, flush=10)
    sent = []
    for second in range(7, 35):
        one.accept(frame(second))
        batch = each.next_batch()
        if batch:
            sent.append([f.iteration for f in batch])
            assert each.next_batch() == []
    assert sent == [[7, 8, 9, 10], list(range(11, 21)), list(range(21, 31))]
    each.next_batch()
    adds_up(each)
    assert each.count['dropped'] == 0 and len(each.frames) == 4


def test_ticks_that_come_while_a_flush_is_under_way_wait_for_the_next_one(spool):
    one = spool()
    each = cursor(one, flush=10)
    for second in range(1, 11):
        one.accept(frame(second))
    assert len(each.next_batch()) == 10
    one.accept(frame(11))                       # the peer takes its time
    one.accept(frame(12))
    assert each.next_batch() == []
    for second in range(13, 21):
        one.accept(frame(second))
    assert [f.iteration for f in each.next_batch()] == list(range(11, 21))


def test_flush_does_not_wait_for_a_tick_that_was_skipped(spool):
    one = spool()
    each = cursor(one, flush=10)
    for second in (7, 8, 9):
        one.accept(frame(second))
    assert each.next_batch() == []
    one.accept(frame(12))                       # 10 and 11 were never held
    assert [f.iteration for f in each.next_batch()] == [7, 8, 9]


def test_more_than_a_batch_goes_out_in_several_sends_after_one_flush(spool):
    one = spool()
    each = cursor(one, flush=10, batch=4)
    for second in range(1, 11):
        one.accept(frame(second))
    assert [[f.iteration for f in each.next_batch()] for _ in range(4)] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10], []]


def test_the_end_sends_what_flush_has_gathered_so_far(spool):
    one = spool()
    each = cursor(one, flush=10)
    one.accept(frame(11))
    assert each.next_batch() == []
    each.closing = True
    assert [f.iteration for f in each.next_batch()] == [11]
    assert each.next_batch() is None


# -- senders on a clock and links that are made up ---------------------------------------------

class ScriptBell:
    """A bell for a thread of its own: a wait lets the clock go on; a wait without end asks the script."""

    def __init__(self, clock, script):
        self.clock, self.script, self.waits, self.rung = clock, list(script), [], False

    def ring(self):
        self.rung = True

    def listen(self, fds=()):
        pass

    def wait(self, seconds=None):
        if self.rung:
            self.rung = False
            return statbadger.RANG
        if seconds is None:
            if not self.script:
                raise AssertionError('nothing more to do')
            self.script.pop(0)()
            return statbadger.RANG
        self.waits.append(seconds)
        self.clock.sleep(seconds)
        return 0

    def close(self):
        pass


class Link:
    """A link that keeps what is sent; fails(data) may raise."""
    fd, unheard = None, True

    def __init__(self, fails):
        self.fails, self.data = fails, []

    def send(self, data, deadline):
        self.fails(data)
        self.data.append(data)

    def settle(self, deadline):
        pass

    def alive(self):
        pass

    def close(self):
        pass


class Rig:
    """A Sender with everything made up around it; run() goes through the script and then closes."""

    def __init__(self, spool, talk, script=(), open_=None, fails=lambda data: None, **more):
        self.clock, self.log, self.over, self.opened = FakeClock(), [], 0, 0
        self.spool, self.open_, self.link = spool, open_, Link(fails)
        self.role = role(options(**more), talk, more.pop('delivery', 'sent'), ('tcp', 'peer', 1, None))
        self.cursor = cursor(spool, 'peer', self.role.delivery, **more)
        self.cursor.bell.close()
        self.cursor.bell = ScriptBell(self.clock, list(script) + [self.close])
        self.sender = statbadger.Sender(self.cursor, self.role, self,
                                        lambda level, message: self.log.append(message), self.clock, self.finished)

    def open(self, target, timeout, deadline):
        self.opened += 1
        if self.open_:
            self.open_(self.opened)
        return self.link

    def finished(self):
        self.over += 1

    def close(self, seconds=5.0):
        self.sender.close(self.clock.monotonic() / 1000.0 + seconds)

    def run(self):
        self.sender.run()
        adds_up(self.cursor)
        assert self.over == 1
        return self.cursor.count


def plain():
    while True:
        frames = yield Next()
        yield Send(b''.join(b'%d ' % f.iteration for f in frames))


def accept(spool, *numbers):
    for number in numbers:
        spool.accept(frame(number))


def test_ticks_that_go_out_count_as_what_the_emitter_says(spool):
    for delivery in ('sent', 'acknowledged'):
        one = spool()
        rig = Rig(one, plain, [lambda: accept(one, 1, 2, 3)], delivery=delivery)
        assert rig.run()[delivery] == 3
        assert rig.link.data == [b'1 2 3 ']


def test_a_batch_whose_connection_broke_is_offered_again_whole_and_in_order(spool):
    one, errors = spool(), [OSError(104, 'reset')] * 3

    def fails(data):
        if errors:
            raise errors.pop()
    rig = Rig(one, plain, [lambda: accept(one, 1, 2, 3)], fails=fails)
    assert rig.run()['sent'] == 3
    assert rig.link.data == [b'1 2 3 '] and rig.opened == 4


def test_backoff_is_random_bounded_and_doubles_to_a_minute(spool):
    one, waits = spool(), []

    def refuse(n):
        if n <= 300:
            raise ConnectionRefusedError(111, 'refused')
    rig = Rig(one, plain, [lambda: accept(one, 1)], open_=refuse)
    assert rig.run()['sent'] == 1
    waits = rig.cursor.bell.waits
    assert len(waits) == 300 and min(waits) >= 0
    for n, wait in enumerate(waits, 1):
        assert wait <= min(60.0, 0.5 * 2 ** n)
    late = waits[10:]
    assert 22 < sum(late) / len(late) < 38      # the mean of 290 draws from 0 to 60: 30 +- 1
    assert len(set(late)) > 280 and max(late) > 50 and min(late) < 10


def test_backoff_begins_small_again_after_a_batch_that_got_through(spool):
    one = spool()

    def refuse(n):
        if n % 13:
            raise ConnectionRefusedError(111, 'refused')
    def break_off():
        rig.link.fails = lambda data: None
        accept(one, 2)
    broken = []

    def fails(data):
        if data == b'2 ' and not broken:
            broken.append(1)
            raise OSError(104, 'reset')
    rig = Rig(one, plain, [lambda: accept(one, 1), lambda: accept(one, 2)], open_=refuse, fails=fails)
    assert rig.run()['sent'] == 2
    waits = rig.cursor.bell.waits
    assert len(waits) == 12 + 13
    assert waits[12] <= 1.0 and waits[13] <= 2.0


def test_a_peer_that_asks_to_come_back_later_is_left_alone_for_so_long(spool):
    one, answers = spool(), [Later('throttled', 7.5), Later('loading', 0.25)]

    def talk():
        frames = yield Next()
        if answers:
            raise answers.pop(0)
        yield Send(b'%d' % len(frames))
        yield Next()
    rig = Rig(one, talk, [lambda: accept(one, 1, 2)])
    assert rig.run()['sent'] == 2
    assert sum(rig.cursor.bell.waits) == pytest.approx(7.75)


@pytest.mark.parametrize('wait', [1e9, 1e300, -5])
def test_a_peer_that_asks_for_a_senseless_pause_gets_a_sensible_one(spool, wait):
    one, answers = spool(), [Later('throttled', wait)]

    def talk():
        frames = yield Next()
        if answers:
            raise answers.pop(0)
        yield Send(b'%d' % len(frames))
        yield Next()
    rig = Rig(one, talk, [lambda: accept(one, 1, 2)])
    assert rig.run()['sent'] == 2
    assert 0 <= sum(rig.cursor.bell.waits) <= 300


def test_a_dead_peer_is_named_once_and_again_after_it_came_back(spool):
    one = spool()

    def refuse(n):
        if n < 50:
            raise ConnectionRefusedError(111, 'Connection refused')
    rig = Rig(one, plain, [lambda: accept(one, 1)], open_=refuse)
    rig.run()
    assert len(rig.log) == 2
    assert rig.log[0].startswith('peer: Connection refused') and rig.log[1] == 'peer: delivers again'


def test_a_bug_in_a_dialogue_is_said_with_its_place_and_the_ticks_wait(spool):
    one, broken = spool(), [1, 2]

    def talk():
        while True:
            frames = yield Next()
            if broken:
                broken.pop()
                {}['key']
            yield Send(b'%d ' % len(frames))
    rig = Rig(one, talk, [lambda: accept(one, 1, 2)])
    assert rig.run()['sent'] == 2
    assert 'KeyError' in rig.log[0] and 'test_delivery.py' in rig.log[0]


def test_the_end_gives_a_dead_peer_its_time_and_no_more(spool):
    one = spool()

    def refuse(n):
        raise ConnectionRefusedError(111, 'refused')
    rig = Rig(one, plain, [lambda: accept(one, 1, 2)], open_=refuse)
    ends = []

    def script_close():
        rig.close(5.0)
        ends.append(rig.clock.monotonic())
    rig.cursor.bell.script = [lambda: accept(one, 1, 2), script_close]
    rig.cursor.bell.script.pop(0)()
    waited = rig.cursor.bell.wait

    def wait(seconds=None):                     # the end comes in the third pause
        if len(rig.cursor.bell.waits) == 2 and not ends:
            script_close()
        return waited(seconds)
    rig.cursor.bell.wait = wait
    count = rig.run()
    assert count['sent'] == 0 and count['accepted'] == 2
    assert rig.sender.failure == 'refused'
    assert 4.8 <= (rig.clock.monotonic() - ends[0]) / 1000.0 <= 5.5


def test_a_pause_is_cut_short_by_the_end(spool):
    one = spool()
    each = cursor(one)
    over = threading.Event()

    class Nobody:
        def open(self, target, timeout, deadline):
            raise Later('throttled', 300)
    sender = statbadger.Sender(each, role(talk=plain), Nobody(), lambda level, message: None,
                               statbadger.Clock(), over.set)
    sender.start()
    accept(one, 1)
    assert until(lambda: sender.failures)
    time.sleep(0.05)
    began = time.monotonic()
    sender.close(began + 0.4)
    assert over.wait(3)
    assert time.monotonic() - began < 2.5


# -- refused data -----------------------------------------------------------------------------

def server_that_refuses(bad, split=False):
    """(dialogue, requests): a peer that takes batches whole or not at all."""
    requests, taken = [], []

    def talk():
        while True:
            frames = yield Next()
            requests.append([f.iteration for f in frames])
            if [f for f in frames if bad(f.iteration)]:
                raise Refused('bad data', split)
            taken.extend(f.iteration for f in frames)
    return talk, requests, taken


@pytest.mark.parametrize('n', [1, 2, 3, 7, 100, 128])
def test_one_bad_tick_is_found_in_few_requests_and_nothing_else_is_lost(spool, n):
    most = 2 * math.log(n, 2) + 3
    for bad in range(1, n + 1):
        one = spool()
        talk, requests, taken = server_that_refuses(lambda i: i == bad)
        rig = Rig(one, talk, [lambda: accept(one, *range(1, n + 1))], batch=128)
        count = rig.run()
        assert taken == [i for i in range(1, n + 1) if i != bad]
        assert (count['sent'], count['quarantined'], count['refused_points']) == (n - 1, 1, 1)
        assert len(requests) <= most, requests
        assert one.bytes == 0


def test_several_bad_ticks_are_all_found_and_order_is_kept(spool):
    seed = random.randrange(1 << 30)
    print('seed', seed)
    dice = random.Random(seed)
    for _ in range(60):
        n = dice.randrange(1, 120)
        bad = set(dice.randrange(1, n + 1) for _ in range(dice.randrange(5)))
        one = spool()
        talk, requests, taken = server_that_refuses(lambda i: i in bad)
        rig = Rig(one, talk, [lambda: accept(one, *range(1, n + 1))], batch=dice.choice([1, 2, 10, 100]))
        count = rig.run()
        assert taken == [i for i in range(1, n + 1) if i not in bad]
        assert count['quarantined'] == len(bad) and count['dropped'] == 0


def test_after_a_bad_tick_batches_have_their_old_size_again(spool):
    one = spool()
    talk, requests, taken = server_that_refuses(lambda i: i == 3)
    rig = Rig(one, talk, [lambda: accept(one, *range(1, 11)), lambda: accept(one, *range(11, 31))], batch=20)
    rig.run()
    assert requests[-1] == list(range(11, 31))


def test_a_peer_that_takes_only_small_batches_gets_them_and_nothing_is_quarantined(spool):
    one, taken = spool(), []

    def talk():
        while True:
            frames = yield Next()
            if len(frames) > 10:
                raise Refused('too large', split=True)
            taken.extend(f.iteration for f in frames)
    rig = Rig(one, talk, [lambda: accept(one, *range(1, 101))])
    count = rig.run()
    assert taken == list(range(1, 101)) and count['sent'] == 100 and count['quarantined'] == 0


def test_a_refusal_is_logged_with_its_reason(spool):
    one = spool()
    talk, requests, taken = server_that_refuses(lambda i: i == 2)
    rig = Rig(one, talk, [lambda: accept(one, 1, 2)])
    rig.run()
    assert [line for line in rig.log if 'bad data' in line]


def test_points_that_a_peer_names_make_their_tick_quarantined_once_and_are_counted(spool):
    one = spool()

    def talk():
        while True:
            frames = yield Next()
            for each in frames:
                if each.iteration == 2:
                    yield Reject(each, 'field type', 7)
    rig = Rig(one, talk, [lambda: accept(one, 1, 2, 3)])
    count = rig.run()
    assert (count['sent'], count['quarantined'], count['refused_points']) == (2, 1, 7)


def test_a_whole_tick_that_a_peer_rejects_counts_all_of_its_points_but_no_holes(spool):
    one = spool()
    bad = frame(1, 10)
    bad.values[3] = float('nan')

    def talk():
        frames = yield Next()
        yield Reject(frames[0], 'no')
        yield Next()
    rig = Rig(one, talk, [lambda: one.accept(bad)])
    count = rig.run()
    assert (count['sent'], count['quarantined'], count['refused_points']) == (0, 1, 9)


def test_what_is_done_is_not_offered_again_after_a_break(spool):
    one, batches = spool(), []

    def talk():
        while True:
            frames = yield Next()
            batches.append([f.iteration for f in frames])
            if len(batches) == 1:
                yield Done(1)
                yield Done(3)
                raise OSError(104, 'reset')
    rig = Rig(one, talk, [lambda: accept(one, 1, 2, 3, 4, 5)])
    assert rig.run()['sent'] == 5
    assert batches == [[1, 2, 3, 4, 5], [4, 5]]


def test_what_is_done_stays_good_when_the_rest_is_refused(spool):
    one, batches = spool(), []

    def talk():
        while True:
            frames = yield Next()
            batches.append([f.iteration for f in frames])
            if 1 in batches[-1]:
                yield Done(1)
            if 2 in batches[-1]:
                raise Refused('no')
    rig = Rig(one, talk, [lambda: accept(one, 1, 2, 3, 4)])
    count = rig.run()
    assert (count['sent'], count['quarantined']) == (3, 1)


# -- neighbours -------------------------------------------------------------------------------

def real_sender(spool, name, port):
    chosen = options(host='127.0.0.1', port=port, protocol='plaintext', transport='tcp', prefix='x', tagged=False,
                     blacklist=[], tags={}, timeout=5)
    over = threading.Event()
    sender = statbadger.Sender(cursor(spool, name), role(chosen, lambda: statbadger.graphite(chosen, {}), 'sent',
                                                             ('tcp', '127.0.0.1', port, None)),
                               statbadger.Opener(statbadger.StdoutLink(), statbadger.Contexts()), lambda level, message: None,
                               statbadger.Clock(), over.set)
    sender.start()
    return sender, over


def test_dead_emitters_do_not_delay_one_that_is_alive(spool):
    one = spool()
    with BlackHole() as hole, TcpSink() as sink:
        dead = [real_sender(one, 'dead%d' % i, hole.port) for i in range(8)]
        alive, over = real_sender(one, 'alive', sink.port)
        delays = []
        for i in range(1, 31):
            began = time.monotonic()
            accept(one, i)
            assert until(lambda: len(sink.lines()) == i, 2)
            delays.append(time.monotonic() - began)
        assert sorted(delays)[len(delays) // 2] < 0.1
        assert until(lambda: alive.cursor.count['sent'] == 30)
        for sender, _ in dead + [(alive, over)]:
            adds_up(sender.cursor)
            sender.close(time.monotonic())
        assert over.wait(2)


def test_a_sender_that_ended_in_failure_holds_no_memory_of_the_spool_any_more(spool):
    one = spool()

    def refuse(n):
        raise ConnectionRefusedError(111, 'refused')
    rig = Rig(one, plain, open_=refuse)
    rig.cursor.bell.script = [lambda: (accept(one, *range(1, 11)), rig.close(0.0))]
    rig.run()
    one.cursors.remove(rig.cursor)              # as a reload does with emitters that are no more
    other = cursor(one, 'other')
    accept(one, 11)
    other.next_batch(), other.next_batch()
    assert one.bytes == 0


# -- what goes again, and how much at once -------------------------------------------------------

def numbers(batch):
    return [f.iteration for f in batch]


def test_a_batch_that_failed_is_offered_again_as_it_was(spool):
    one = spool()
    each = cursor(one)
    accept(one, 1, 2)
    assert numbers(each.next_batch()) == [1, 2]
    accept(one, 3)
    each.keep()
    accept(one, 4)
    assert numbers(each.next_batch()) == [1, 2]
    each.done(1)
    each.keep()
    assert numbers(each.next_batch()) == [2]
    assert numbers(each.next_batch()) == [3, 4]
    adds_up(each)


def test_what_was_sent_in_the_last_ten_seconds_goes_again_after_a_break_and_is_counted_once(spool):
    one = spool()
    each = statbadger.Cursor(one, 'x', role(target=('tcp', 'h', 1, None)))
    one.cursors.append(each)
    for i in range(1, 31):
        accept(one, i)
        assert numbers(each.next_batch()) == [i]
    each.keep()                                 # 1 to 29 were sent, 30 is under way
    accept(one, 31)
    assert numbers(each.next_batch()) == list(range(20, 30)) + [30]
    each.done(10)
    assert each.count['sent'] == 29             # those that went again were counted before
    each.done(11)
    assert each.count['sent'] == 30
    assert numbers(each.next_batch()) == [31]
    each.keep(broke=False)                      # our patience was over: the peer has what its kernel has
    assert numbers(each.next_batch()) == [31]
    each.keep()
    assert numbers(each.next_batch()) == list(range(21, 31)) + [31]
    each.keep()                                 # not a third time: a peer that always breaks off must get on
    assert numbers(each.next_batch()) == [31]
    assert each.next_batch() == [] and each.count['sent'] == 31
    adds_up(each)


@pytest.mark.parametrize('delivery, target', [('acknowledged', ('tcp', 'h', 1)), ('sent', ('stdout',)), ('sent', ('udp', 'h', 1))])
def test_nothing_goes_again_where_it_would_be_doubled(spool, delivery, target):
    one = spool()
    each = statbadger.Cursor(one, 'x', role(None, None, delivery, target))
    one.cursors.append(each)
    accept(one, 1)
    assert numbers(each.next_batch()) == [1]
    assert each.next_batch() == []
    each.keep()
    accept(one, 2)
    assert numbers(each.next_batch()) == [2]


def test_a_batch_leaves_room_for_what_others_have_waiting(spool):
    one = spool(1 << 16)
    dead, live = cursor(one, 'dead'), cursor(one, 'live')
    for i in range(1, 61):
        accept(one, i)
    assert 2 <= len(dead.next_batch()) < 45     # a quarter of 65,536 bytes, at 408 bytes a tick
    for i in range(61, 100):
        accept(one, i)
    assert live.count['dropped'] == 0 and len(live.frames) == 99


def exchange_over(batches, link):
    """An Exchange with that link; perform(step) does what converse() would do with it."""
    one = statbadger.Exchange(batches, ('tcp', 'h', 1, None), 5, None)
    one.link, one.links = link, [link]
    link.close = lambda: None
    one.perform = lambda step: one.STEPS[type(step)](one, step)
    return one


def test_what_the_peers_kernel_has_when_the_time_is_over_does_not_go_again():
    class Slow:
        """Takes 10 bytes a message; its kernel has acknowledged 25 when the time is over."""
        sent, unheard, fd = 0, True, None

        def send(self, data, deadline):
            if self.sent >= 40:
                raise OSError(errno.ETIME, 'over')
            self.sent += len(data)

        def acknowledged(self):
            return 25
    done, batches = [], SimpleNamespace(done=lambda n: done.append(n))
    exchange = exchange_over(batches, Slow())
    with pytest.raises(OSError):
        for n in range(1, 10):
            exchange.perform(statbadger.Send(b'x' * 10))
            exchange.perform(statbadger.Done(n))
    assert done == [1, 2]


def test_after_a_reset_nothing_counts_for_nobody_has_read_it():
    class Gone:
        sent, unheard, fd = 0, True, None

        def send(self, data, deadline):
            if self.sent:
                raise ConnectionResetError(errno.ECONNRESET, 'reset')
            self.sent += len(data)

        def acknowledged(self):
            return self.sent
    done, batches = [], SimpleNamespace(done=lambda n: done.append(n))
    exchange = exchange_over(batches, Gone())
    with pytest.raises(OSError):
        for n in (1, 2):
            exchange.perform(statbadger.Send(b'x' * 10))
            exchange.perform(statbadger.Done(n))
    assert done == []


def test_a_dialogue_that_ends_with_a_batch_under_way_has_not_delivered_it(spool):
    one, offered = spool(), []

    def talk():
        frames = yield statbadger.Next()
        offered.append(numbers(frames))
        if len(offered) > 2:
            yield statbadger.Next()
    rig = Rig(one, talk, [lambda: accept(one, 1)])
    rig.run()
    assert offered == [[1], [1], [1]] and rig.cursor.count['sent'] == 1


def test_trouble_that_comes_and_goes_is_said_once_a_minute_and_a_recovery_only_after_trouble(spool):
    one, broken = spool(), []

    def fails(data):
        broken.append(1)
        if len(broken) % 2:
            raise OSError(5, 'flaps')

    def talk():
        while True:
            frames = yield statbadger.Next()
            yield statbadger.Send(b'%d' % len(frames))
    rig = Rig(one, talk, [lambda i=i: (accept(one, i), rig.clock.advance(2000)) for i in range(1, 100)], fails=fails)
    rig.run()
    assert len(broken) == 198 and rig.cursor.count['sent'] == 99
    assert 3 <= len([m for m in rig.log if 'flaps' in m]) <= 6, rig.log          # 99 failures in 200 seconds and more
    assert len([m for m in rig.log if 'again' in m]) == len([m for m in rig.log if 'flaps' in m])


def test_other_options_after_a_reload_keep_what_is_pending(spool):
    one, said = spool(), []

    def talk(name):
        while True:
            frames = yield statbadger.Next()
            said.append((name, numbers(frames)))
            if name == 'old':
                raise OSError(5, 'dead')
    rig = Rig(one, lambda: talk('old'), [lambda: accept(one, 1, 2)])
    rig.sender.wait = lambda seconds: rig.sender.renew(role(options(batch=1), lambda: talk('new')))
    rig.run()
    assert said == [('old', [1, 2]), ('new', [1]), ('new', [2])]
    assert rig.sender.role.options.batch == 1
    assert rig.cursor.count['accepted'] == rig.cursor.count['sent'] == 2
