"""The emitter that the README shows being added: put into a copy of the program, it does what the README says."""
import json
import os

import pytest
import standins
from conftest import PROGRAM, ROOT

CHAPTER = '# == 9 TRANSPORTS'


@pytest.fixture
def with_nats(tmp_path):
    """The path of a program with the README's emitter in section 8."""
    with open(os.path.join(ROOT, 'README.md')) as file:
        text = file.read().partition('<!-- an emitter -->\n```python\n')[2].partition('```\n')[0]
    with open(PROGRAM) as file:
        before, mark, after = file.read().partition(CHAPTER)
    path = tmp_path / 'statbadger.py'
    path.write_text(before + text + '\n\n' + mark + after)
    return path


class NatsStandin(standins.Listener):
    """.published: (subject, message) of each PUB; .logins: what CONNECT said. `refuses`: it does not take the login."""

    def __init__(self, refuses=False):
        self.published, self.logins, self.refuses = [], [], refuses
        standins.Listener.__init__(self)

    def talk(self, wire):
        wire.send(b'INFO {"server_id": "x", "max_payload": 1048576}\r\n')
        while True:
            verb, _, rest = wire.until(b'\n', 4096).rstrip(b'\r\n').partition(b' ')
            if verb == b'CONNECT':
                self.logins.append(json.loads(rest.decode()))
            elif verb == b'PUB':
                subject, size = rest.split(b' ')
                self.published.append((subject.decode(), wire.exactly(int(size))))
                assert wire.exactly(2) == b'\r\n'
            elif verb == b'PING':
                wire.send(b"-ERR 'Authorization Violation'\r\n" if self.refuses else b'PING\r\nPONG\r\n')
            else:
                assert verb == b'PONG', verb


def test_it_is_listed_checked_and_explained(run, with_nats):
    assert 'nats' in run('--list', 'emitters', program=with_nats).out
    assert '127.0.0.1' in run('-h', 'nats', program=with_nats).out
    assert 'subject' in run('--example-config', program=with_nats).out
    done = run('-e', 'nats,subjct=x', '--check', program=with_nats)
    assert done.code == 2 and 'subject' in done.err


def test_it_delivers(run, with_nats):
    with NatsStandin() as server:
        done = run('-m', 'load', '-n', '2', '-i', '0.1', '-e',
                   'nats,port=%d,subject=stats.{hostname},username=mia,password=s3same' % server.port, program=with_nats)
        assert (done.code, done.err) == (0, '')
        assert [(login['user'], login['pass']) for login in server.logins] == [('mia', 's3same')]
        ticks = [json.loads(message.decode()) for _, message in server.published]
        assert len(ticks) == 2 and 'load.one' in ticks[0]['points'][0]
        assert {subject.split('.')[0] for subject, _ in server.published} == {'stats'}


def test_it_says_why_it_does_not(run, with_nats):
    with NatsStandin(refuses=True) as server:
        done = run('-m', 'load', '-n', '1', '-i', '0.1', '-e', 'nats,port=%d' % server.port, program=with_nats)
        assert done.code == 1 and 'Authorization Violation' in done.err


def test_it_is_as_short_as_the_readme_says(with_nats):
    with open(os.path.join(ROOT, 'README.md')) as file:
        text = file.read().partition('<!-- an emitter -->\n```python\n')[2].partition('```\n')[0]
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
