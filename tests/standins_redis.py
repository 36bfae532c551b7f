"""A stand-in for a Redis server: RESP2 commands as the program sends them, kept in lists, streams and channels."""
import re

from standins import Hangup, Listener, Malformed

MOST_WORDS, MOST_BYTES = 1 << 10, 1 << 26


class RedisStandin(Listener):
    """Takes AUTH, SELECT, RPUSH, LTRIM, XADD and PUBLISH.

    users: {name: password}; without any nobody has to log in. .keys: {(database, key): [message] or
    [(id, {field: value})]}, .published: [(channel, message)]. .commands: all that came, each a list of words.
    .listening: how many are subscribed. .greeting: what is said at once, and then the end.
    .faults: [(command, after how many of them, what)], each used up when its turn comes. what: an error, which is
    said instead of doing it; 'close', 'reset' or 'silence' after it was done; ('say', bytes) instead of its answer.
    """

    def __init__(self, tls=None, users=(), most=1 << 29, databases=16):
        self.users, self.largest, self.databases = dict(users), most, databases
        self.keys, self.published, self.commands, self.listening = {}, [], [], 1
        self.faults, self.greeting, self.last = [], b'', 0
        Listener.__init__(self, tls)

    def fail(self, command, what, after=0):
        with self.lock:
            self.faults.append([command, after, what])

    def fault(self, command):
        """What goes wrong with this one, or None."""
        for fault in self.faults:
            if fault[0] == command:
                fault[1] -= 1
                if fault[1] < 0:
                    self.faults.remove(fault)
                    return fault[2]
        return None

    def talk(self, wire):
        state = {'user': None if self.users else 'default', 'database': 0}
        if self.greeting:
            wire.send(self.greeting)
            return
        while True:
            words = self.words(wire, state)
            with self.lock:
                self.commands.append(words)
                what = self.fault(words[0].decode())
                answer = b'-%s\r\n' % what.encode() if refusal(what) else self.answer(state, words)
            if isinstance(what, tuple):
                answer = what[1]
            if what in ('close', 'reset'):
                raise Hangup(what == 'reset')
            if what == 'silence':
                while True:
                    wire.more()
            wire.send(answer)

    def words(self, wire, state):
        """The words of the next command."""
        count = self.number(wire, b'*', MOST_WORDS)
        if not count:
            raise Malformed('a command without a word')
        out = []
        for _ in range(count):
            n = self.number(wire, b'$', MOST_BYTES)
            if state['user'] is None and n > 16384:
                self.protocol_error(wire, 'unauthenticated bulk length')
            if n > self.largest:
                self.protocol_error(wire, 'invalid bulk length')
            data = wire.exactly(n + 2)
            if data[-2:] != b'\r\n':
                raise Malformed('%r does not end where it says' % data[:80])
            out.append(data[:-2])
        return out

    def protocol_error(self, wire, words):
        """As Redis does: the error, and the end."""
        wire.send(b'-ERR Protocol error: %s\r\n' % words.encode())
        raise Hangup()

    def number(self, wire, mark, most):
        line = wire.until(b'\r\n', 80)
        if not re.match(rb'\%s(0|[1-9][0-9]{0,9})\r\n\Z' % mark, line) or int(line[1:]) > most:
            raise Malformed('%r, need %r and a number' % (line, mark))
        return int(line[1:])

    def answer(self, state, words):
        command, given = words[0].decode(), words[1:]
        if command == 'AUTH':
            return self.auth(state, [word.decode() for word in given])
        if state['user'] is None:
            return b'-NOAUTH Authentication required.\r\n'
        return getattr(self, 'do_' + command.lower(), self.unknown)(state, *given)

    def unknown(self, state, *given):
        return b"-ERR unknown command 'X', with args beginning with: %s\r\n" % b' '.join(
            b"'%s'" % word[:128] for word in given)

    def auth(self, state, given):
        name, password = given if len(given) == 2 else ['default'] + given
        if not self.users:
            return (b'-ERR AUTH <password> called without any password configured for the default user. Are you '
                    b'sure your configuration is correct?\r\n')
        if self.users.get(name) != password:
            return b'-WRONGPASS invalid username-password pair or user is disabled.\r\n'
        state['user'] = name
        return b'+OK\r\n'

    def do_select(self, state, number):
        if int(number) >= self.databases:
            return b'-ERR DB index is out of range\r\n'
        state['database'] = int(number)
        return b'+OK\r\n'

    def invalid(self, message):
        """An error about a message, or None."""

    def do_rpush(self, state, key, message):
        error = self.invalid(message)
        if error:
            return b'-%s\r\n' % error.encode()
        found = self.keys.setdefault((state['database'], key.decode()), [])
        found.append(message)
        return b':%d\r\n' % len(found)

    def do_ltrim(self, state, key, start, stop):
        start, stop = int(start), int(stop)
        found = self.keys.get((state['database'], key.decode()), [])
        if not start < 0 or stop != -1:
            raise Malformed('LTRIM %d %d' % (start, stop))
        del found[:start]
        return b'+OK\r\n'

    def do_xadd(self, state, key, *given):
        limit = None
        if given[0] == b'MAXLEN':
            if given[1] != b'~':
                raise Malformed('XADD %r' % (given[:5],))
            limit, given = int(given[2]), given[3:]
        if given[0] != b'*' or len(given) % 2 == 0:
            raise Malformed('XADD %r' % (given[:5],))
        fields = dict(zip([name.decode() for name in given[1::2]], given[2::2]))
        error = self.invalid(fields['payload'])
        if error:
            return b'-%s\r\n' % error.encode()
        self.last += 1
        entry = b'1700000000000-%d' % self.last
        found = self.keys.setdefault((state['database'], key.decode()), [])
        found.append((entry.decode(), fields))
        if limit is not None:
            del found[:max(0, len(found) - limit - 100)]
        return b'$%d\r\n%s\r\n' % (len(entry), entry)

    def do_publish(self, state, channel, message):
        error = self.invalid(message)
        if error:
            return b'-%s\r\n' % error.encode()
        if self.listening:
            self.published.append((channel.decode(), message))
        return b':%d\r\n' % self.listening

    def messages(self, key, database=0):
        """The messages of a list, a stream or a channel, in order."""
        with self.lock:
            found = [one[1]['payload'] if isinstance(one, tuple) else one
                     for one in self.keys.get((database, key), ())]
            return found + [message for channel, message in self.published if channel == key]


def refusal(what):
    """Whether this fault is an error that the server says."""
    return isinstance(what, str) and what not in ('close', 'reset', 'silence')
