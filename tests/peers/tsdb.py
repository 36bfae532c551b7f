"""What the tests of OpenTSDB and KairosDB share: what is expected of a run, from what `stdout` printed of it.

Where a flat name ends and its label begins, which characters become _ and which tags go when there are too many is
worked out here anew, not by the program.
"""
import itertools
import json
import os
import re
import urllib.error
import urllib.request

from conftest import TESTS
from peer import hostile_host
from standins import HttpStandin

IDENTITY = {'datacenter': 'EC2', 'region': 'us-west-1', 'zone': '', 'cluster': 'te st', 'hostname': 'n1.example.net',
            'ipv4': '10.10.10.2', 'ipv6': '2001:db8::1'}
LABELS = {'disk': 'device', 'net': 'interface', 'cpu': 'cpu'}
ALL = {'cpu': {'per_core': True}, 'load': {}, 'disk': {'devices': ['*'], 'partitions': True},
       'network': {'interfaces': ['*']}, 'memory': {}, 'system': {}}
LOAD = {'load': {}}
FROZEN = os.path.join(TESTS, 'hosts')
HOSTS = sorted(name for name in os.listdir(FROZEN) if os.path.isdir(os.path.join(FROZEN, name)))
NUMBERS = itertools.count()


def new_host():
    """The name of a host that no other test has."""
    return 'host%d' % next(NUMBERS)


def clean(text):
    return re.sub('[^A-Za-z0-9._/-]', '_', text)


def series_of(flat):
    """disk.reads.sda -> ('disk.reads', {'device': 'sda'})"""
    words = flat.split('.', 2)
    if len(words) < 3 or words[0] not in LABELS:
        return flat, {}
    return '.'.join(words[:2]), {LABELS[words[0]]: words[2]}


def tags_of(tick, labels, tags, most):
    """The tags of a point, of which the server takes no more than `most`."""
    wanted = dict(tags)
    for key in ('datacenter', 'cluster', 'zone', 'region', 'ipv4', 'ipv6'):
        wanted.setdefault(key, tick[key])
    out = {'host': wanted.pop('host', tick['hostname'])}
    out.update(labels)
    for key, value in sorted(wanted.items(), key=lambda item: item[0] not in tags):
        if value and key not in out and len(out) < most:
            out[key] = value
    return tuple(sorted((clean(key), clean(value)) for key, value in out.items()))


def expected(ticks, tags=None, keep=lambda tick, flat: True, known=series_of, most=8):
    """{metric: {(ms, sorted tags): value}} of these payloads. Of names that are the same there
    the later ones of a tick have a _ more."""
    out = {}
    for tick in ticks:
        taken = set()
        for flat, entry in ((flat, entry) for point in tick['points'] for flat, entry in point.items()):
            if keep(tick, flat):
                metric, labels = known(flat)
                key = int(round(tick['timestamp'] * 1000)), tags_of(tick, labels, tags or {}, most)
                name = clean(metric)
                while (name, key) in taken:
                    name += '_'
                taken.add((name, key))
                out.setdefault(name, {})[key] = entry['value']
    return out


def difference(found, wanted):
    """What is not the same in two such dicts, in words; '' when nothing is. Numbers are doubles there."""
    out = []
    for metric in sorted(set(found) | set(wanted)):
        there, here = found.get(metric, {}), wanted.get(metric, {})
        for key in sorted(set(there) | set(here)):
            if key not in there or key not in here or float(there[key]) != float(here[key]):
                out.append('%s %s: found %s, wanted %s' % (metric, key, there.get(key), here.get(key)))
    return '' if not out else '%d points, such as\n%s' % (len(out), '\n'.join(out[:5]))


def config(folder, kind, modules=None, identity=IDENTITY, host=None, **more):
    """A configuration file with that emitter and stdout, for a host of that name or one that no other test has. more:
    options of the emitter."""
    path = folder / ('statbadger%d.conf' % next(NUMBERS))
    path.write_text(json.dumps(dict(dict(identity, hostname=host or new_host()), modules=modules or ALL,
                                    emitters={kind: dict({'timeout': 60}, **more), 'stdout': {}})))
    return str(path)


def host_of(wanted):
    """The host tag of what is expected: it is the same in all points."""
    host, = {dict(tags)['host'] for points in wanted.values() for _, tags in points}
    return host


# -- names that mean harm ------------------------------------------------------------------------

# What the kernel lets an interface be called: anything but blanks, / and :
INTERFACES = [b'eth0.100', b'q"uo\'te', b'back\\slash', b'semi;colon=1', b'per%d%s%', b'x{y="z"}', b'~tilde', b'*glob?[a]',
              b'....', b'nan', b'-', b'null', b'#!<&>|', b'"]]}],', b'ctl\x01\x1c\x7f', 'gr\u00fc\u00df'.encode(),
              'ls\u2028\u0085'.encode(), b'by\xff\xfe\x80']
DEVICES = [b'cciss/c0d0', b'odd!disk', b'quo"te', b'semi;colon=', b'a%s%', b'back\\', b'~~~', b'/re.*/',
           'k\u00fchlschrank'.encode()]


def hostile_recording(folder):
    return hostile_host(folder, INTERFACES, DEVICES, b'unused\n')


OWN = '''
class own:
    def __init__(self, config, logger):
        pass

    def get_stats(self, iteration):
        return [{name: {'value': value, 'units': ''} for name, value in %s}]
'''


def own_module(folder, points):
    """The module of a user that gives these (name, value)."""
    file = folder / 'own.py'
    file.write_text(OWN % ascii(points))
    return {'own': {'file': str(file)}}


class Relay(HttpStandin):
    """Hands every request on to the server, with other bytes in place of some, and its answer back. .requests
    has them all. spoil: [(old, new)] of bodies that are not compressed."""

    def __init__(self, url, spoil=()):
        self.url, self.spoil = url, spoil
        HttpStandin.__init__(self)

    def reply(self, request):
        headers = {k: v for k, v in request.headers.items() if k.startswith(('content-t', 'content-e'))}
        body = request.raw
        for old, new in self.spoil:
            body = body.replace(old, new)
        onward = urllib.request.Request(self.url + request.path, body, headers)
        try:
            with urllib.request.urlopen(onward, timeout=30) as answer:
                return answer.status, {}, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, {}, error.read()
