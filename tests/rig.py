"""One configured emitter at work without an agent around it: its spool, its thread, its log, and a clock in a hurry."""
import json
import os
import threading
import time
from array import array

import statbadger

WHO = {'datacenter': 'EC2', 'region': '', 'zone': '', 'cluster': 'test', 'hostname': 'n1', 'ipv4': '10.10.10.2',
       'ipv6': ''}
LAYOUT = statbadger.Layout((
    statbadger.Series('cpu', 'user', 'percent', statbadger.SHARE, (), ()),
    statbadger.Series('disk', 'reads', '', statbadger.COUNTER, ('device',), ('sda',)),
    statbadger.Series('mem', 'memtotal', 'B', statbadger.GAUGE, (), ())))


def stamp(path):
    return os.stat(path).st_mtime_ns if os.path.isfile(path) else 0


def configured(name, environ=(), **options):
    """The Chosen of an emitter with these options, through the configuration as a user would write it."""
    place = statbadger.Place('test', '', dict(environ), None, stamp)
    return statbadger.read_config(json.dumps({'emitters': {name: options}}), place).emitters[0]


def role_of(chosen, before=None):
    """What the agent makes of it; before: the role that a reload takes it over from."""
    agent = statbadger.Agent.__new__(statbadger.Agent)
    agent.log = lambda level, text: None
    return agent.role_of(chosen, before)


class Played:
    """A dialogue whose steps are performed without any link, by perform(step) of a class of its own.

    .steps: all of them, .failure: the OSError or Refused that ended it, or None.
    """

    def play(self, dialogue):
        """Until it ends, or perform() raises StopIteration."""
        self.steps, self.failure = [], None
        answer = failure = None
        try:
            while True:
                step = dialogue.send(answer) if failure is None else dialogue.throw(failure)
                answer = failure = None
                self.steps.append(step)
                try:
                    answer = self.perform(step)
                except OSError as error:
                    failure = error
        except StopIteration:
            pass
        except (OSError, statbadger.Refused) as error:
            self.failure = error
        dialogue.close()

    def all(self, kind):
        return [step for step in self.steps if isinstance(step, kind)]

    def done(self):
        return [step.n for step in self.all(statbadger.Done)]

    def rejected(self):
        return [(step.frame.seq, step.points) for step in self.all(statbadger.Reject)]


class HastyClock(statbadger.Clock):
    """Real time, and what pauses have skipped. skipped: seconds of each."""

    def __init__(self):
        self.ahead, self.skipped = 0.0, []

    def monotonic(self):
        return time.monotonic() * 1000.0 + self.ahead

    def sleep(self, seconds):
        time.sleep(min(seconds, 0.005))
        self.ahead += seconds * 1000.0


class HastyBell(statbadger.Bell):
    """Pauses take 5 ms at most, and the clock goes on as if they had taken their time."""

    def __init__(self, clock):
        statbadger.Bell.__init__(self)
        self.clock = clock

    def wait(self, seconds=None):
        if seconds is None:
            return statbadger.Bell.wait(self, None)
        rung = statbadger.Bell.wait(self, min(seconds, 0.005))
        if not rung:
            self.clock.skipped.append(seconds)
            self.clock.ahead += seconds * 1000.0
        return rung


class Rig:
    """An emitter of a kind with options, in a with statement. log: [(level, text)]."""

    def __init__(self, name, most=1 << 24, **options):
        self.spool, self.log, self.over, self.clock = statbadger.Spool(most), [], threading.Event(), HastyClock()
        role = role_of(configured(name, **dict({'timeout': 2}, **options)))
        self.cursor = statbadger.Cursor(self.spool, name, role)
        self.cursor.bell.close()
        self.cursor.bell = HastyBell(self.clock)
        self.sender = statbadger.Sender(
            self.cursor, role, statbadger.Opener(statbadger.StdoutLink(), statbadger.Contexts()),
            lambda level, text: self.log.append((level, text)), self.clock, self.over.set)
        self.spool.cursors.append(self.cursor)

    def __enter__(self):
        self.sender.start()
        return self

    def __exit__(self, *error):
        self.sender.close(self.clock.monotonic() / 1000.0)
        if not self.over.wait(10):
            raise AssertionError('the sender does not end')
        self.adds_up()

    def tick(self, *numbers, **more):
        """Hands ticks of these numbers to the spool: second `number`, and the number in its values."""
        for n in numbers:
            layout = more.get('layout', LAYOUT)
            frame = statbadger.Frame(more.get('time_ms', n * 1000), n, more.get('who', WHO), layout,
                                     array('d', [n] * len(layout.series)))
            self.spool.accept(frame)

    def renew(self, **options):
        """What a reload with other options does."""
        self.sender.renew(role_of(configured(self.cursor.name, **dict({'timeout': 2}, **options)), self.sender.role))

    def adds_up(self):
        with self.spool.lock:
            count, pending = dict(self.cursor.count), len(self.cursor.frames)
        assert count['accepted'] == sum(count[k] for k in (
            'acknowledged', 'sent', 'dropped', 'quarantined', 'damaged')) + pending, count
        return count

    def until(self, condition, seconds=10.0):
        """Waits for condition(); the account adds up at every look."""
        end = time.monotonic() + seconds
        while not condition():
            self.adds_up()
            if time.monotonic() > end:
                raise AssertionError('%s %s' % (self.adds_up(), self.log))
            time.sleep(0.002)

    def settled(self, seconds=10.0):
        """Waits until nothing is pending; the account."""
        self.until(lambda: not self.cursor.frames, seconds)
        return self.adds_up()

    def said(self):
        """All lines of the log, and what would be said at the end."""
        return '\n'.join([text for level, text in self.log] + [self.sender.failure or ''])
