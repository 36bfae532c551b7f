"""Frozen hosts run through the whole program, held against an independent, slow computation."""
import json
import os

import oracle
import pytest
from conftest import TESTS

HOSTS = os.path.join(TESTS, 'hosts')
NAMES = sorted(name for name in os.listdir(HOSTS) if os.path.isdir(os.path.join(HOSTS, name)) and name[0] not in '._')
VARIANTS = {
    'plain': ({}, []),
    'everything': (dict(per_core=True, interfaces=['*'], devices=['*'], partitions=True),
                   ['-m', 'cpu,per_core', '-m', 'load', '-m', 'disk,devices=*,partitions', '-m', 'network,interfaces=*',
                    '-m', 'memory', '-m', 'system']),
}


def close(found, expected):
    return found == expected or abs(found - expected) <= 2e-11 * abs(expected)


@pytest.mark.parametrize('variant', sorted(VARIANTS))
@pytest.mark.parametrize('name', NAMES)
def test_a_frozen_host_gives_what_the_oracle_says(run, name, variant):
    how, arguments = VARIANTS[variant]
    folder = os.path.join(HOSTS, name)
    done = run('--replay', folder, '-e', 'stdout', *arguments)
    assert done.code == 0
    found = [json.loads(line) for line in done.out.split('\n')[:-1]]
    expected = oracle.payloads(folder, **how)
    assert [p['timestamp'] for p in found] == [p['timestamp'] for p in expected]
    for one, other in zip(found, expected):
        for key in ('datacenter', 'region', 'zone', 'cluster', 'hostname', 'ipv4', 'ipv6'):
            assert one[key] == other[key]
        points = [(n, v['value'], v['units']) for point in one['points'] for n, v in point.items()]
        assert sorted(p[0] for p in points) == sorted(other['points'])
        for n, value, unit in points:
            assert close(value, other['points'][n][0]) and unit == other['points'][n][1], (n, value, other['points'][n])


@pytest.mark.parametrize('name', NAMES)
def test_a_replay_gives_the_same_bytes_each_time(run, name):
    arguments = ['--replay', os.path.join(HOSTS, name), '-e', 'stdout', '-e', 'stdout_pretty']
    assert run(*arguments[:-2]).out == run(*arguments[:-2]).out
