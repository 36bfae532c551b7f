"""The emitter that the README shows being added, against a real NATS server, read back by nats-py."""
import asyncio
import json
import os
import sys

import pytest
from peer import Peer, accepts, command, free_port, require
from test_readme import with_nats  # noqa: F401

nats = pytest.importorskip('nats') if os.environ.get('REQUIRE_PEERS') != '1' else __import__('nats')


@pytest.fixture
def server(tmp_path):
    """A nats-server that wants mia and her password; .port is where it listens."""
    program = require(command('nats-server'), 'nats-server', 'Debian package nats-server')
    port = free_port()
    (tmp_path / 'nats.conf').write_text(
        'listen: "127.0.0.1:%d"\nauthorization { users = [{user: mia, password: "s3 same"}] }\n' % port)
    with Peer('nats', [program, '-c', 'nats.conf'], tmp_path, lambda: accepts(port)) as peer:
        peer.port = port
        yield peer


async def heard(port, argv, ticks):
    """(exit code, errors, [(subject, payload)]) of a program that publishes so many."""
    client = await nats.connect('nats://127.0.0.1:%d' % port, user='mia', password='s3 same')
    found, enough = [], asyncio.Event()

    async def take(message):
        found.append((message.subject, json.loads(message.data.decode())))
        if len(found) >= ticks:
            enough.set()
    await client.subscribe('>', cb=take)
    await client.flush()
    process = await asyncio.create_subprocess_exec(*argv, stderr=asyncio.subprocess.PIPE)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    if not process.returncode:
        await asyncio.wait_for(enough.wait(), 10)
    await client.close()
    return process.returncode, err.decode(), found


def publish(program, port, password):
    return [sys.executable, str(program), '-m', 'load', '-n', '3', '-i', '0.1', '-e',
            'nats,port=%d,username=mia,password=%s,subject=stats.{hostname}.load' % (port, password)]


def test_what_is_published_is_heard(server, with_nats):  # noqa: F811
    code, err, found = asyncio.run(heard(server.port, publish(with_nats, server.port, 's3 same'), 3))
    assert (code, err) == (0, '')
    assert len(found) == 3 and len({payload['timestamp'] for _, payload in found}) == 3
    for subject, payload in found:
        assert subject.startswith('stats.') and subject.endswith('.load')
        assert 'load.one' in payload['points'][0]


def test_a_wrong_password_is_said_without_being_shown(server, with_nats):  # noqa: F811
    code, err, found = asyncio.run(heard(server.port, publish(with_nats, server.port, 'wr0ng'), 1))
    assert code == 1 and found == []
    assert 'Authorization Violation' in err and 'wr0ng' not in err
