"""COMMAND LINE and the re-exec: flags, exit codes, one-line errors, odd surroundings, what the process list shows."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest
import statbadger
from conftest import PROGRAM, clean_environment
from standins import KafkaStandin

pytestmark = pytest.mark.filterwarnings('ignore:This process .* is multi-threaded:DeprecationWarning')    # forked()
LACKING = ('json', 'http', 'hmac', 'queue', 'shutil', 'gzip', 'uuid', 'resource', 'difflib', 'ctypes', 'dataclasses',
           'getpass', 'secrets', 'termios', 'mmap', 'multiprocessing')
QUICK = '-e stdout -m load -n 1 -i 0.05'
LONG = '-e stdout -m load -n 8 -i 0.02'          # long enough for the re-exec


def sh(script, python=sys.executable, program=PROGRAM, **more):
    """(code, out, err) of a shell script in which $P is the interpreter and $B the program."""
    env = dict(clean_environment(more.pop('env', None)), P=python, B=program)
    for name in more.pop('without', ()):
        env.pop(name, None)
    process = subprocess.Popen(['/bin/sh', '-c', script], stdin=more.pop('stdin', subprocess.DEVNULL),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True, **more)
    try:
        out, err = process.communicate(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError('did not end: %s' % script)
    assert b'Traceback' not in err, err.decode('utf-8', 'replace')
    return process.returncode, out.decode(), err.decode()


def forked(arguments, folder):
    """(code, out, err) of main() in a child of this process, which is much quicker than an interpreter;
    the code is None when it went on for 3 seconds."""
    paths = [str(folder / name) for name in ('out', 'err')]
    pid = os.fork()
    if not pid:
        try:
            signal.alarm(3)
            for i, path in enumerate([os.devnull] + paths):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), i)
            os._exit(statbadger.main(arguments))
        except BaseException as error:
            os.write(2, ('Traceback: %r\n' % error).encode('utf-8', 'replace'))
        finally:
            os._exit(99)
    end = os.waitpid(pid, 0)[1]
    texts = []
    for path in paths:
        with open(path, 'rb') as file:
            texts.append(file.read().decode('utf-8', 'replace'))
    return (os.WEXITSTATUS(end) if os.WIFEXITED(end) else None,) + tuple(texts)


def until(condition, seconds=10):
    """Polls until the condition gives something true, and gives that."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.005)
    raise AssertionError('did not come to pass within %g s' % seconds)


def command_line(pid):
    with open('/proc/%d/cmdline' % pid, 'rb') as file:
        return file.read()


def reexeced(process):
    """Waits until the process has become the one that runs from bytecode."""
    def look():
        assert process.poll() is None, process.stderr.read()
        return b'/proc/self/fd/' in command_line(process.pid)
    until(look)


def status(pid, key):
    with open('/proc/%d/status' % pid) as file:
        return int(re.search(r'(?m)^%s:\s+(\d+)' % key, file.read()).group(1))


def lines(text):
    """The payloads of stdout."""
    return [json.loads(line) for line in text.splitlines()]


def value(text, name):
    """The value of a point in the first payload."""
    return [point[name]['value'] for point in lines(text)[0]['points'] if name in point][0]


def make_host(folder, load):
    (folder / 'proc').mkdir(parents=True)
    (folder / 'sys').mkdir()
    (folder / 'proc' / 'loadavg').write_text('%s 0.04 0.05 2/321 4242\n' % load)
    return folder


# What waits longest runs beside all others.

@pytest.fixture(scope='module', autouse=True)
def full_disk():
    """A run whose standard output is a full disk; it has to wait for 5 seconds before it gives up."""
    with open('/dev/full', 'wb') as out:
        process = subprocess.Popen([sys.executable, PROGRAM, '-e', 'stdout,timeout=0.1', '-m', 'load', '-n', '1', '-i', '0.05'],
                                   stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=clean_environment())
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stderr.close()


# -- errors -----------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments, words', [
    (['--bogus'], '--bogus'), (['word'], 'word'), (['--vers'], '--vers'), (['--chec'], '--chec'), (['--he'], '--he'),
    (['--lis', 'metrics'], '--lis'), (['-x'], '-x'), (['-n', '0'], '-n'), (['-n', '-1'], '-n'), (['-n', ''], '-n'),
    (['-n', '1.5'], '-n'), (['-n', 'x'], '-n'), (['-n', '1e3'], '-n'), (['-n', '9' * 30], '-n'), (['-n'], '-n'),
    (['-n', '\u00b2'], '-n'), (['-n', '\u0663'], '-n'), (['-n', ' 1'], '-n'), (['-i', 'x'], 'interval'), (['-i', '0'], 'interval'),
    (['-i', ''], 'interval'), (['-i', '-1'], ''), (['-i', '1e999'], 'interval'), (['-i', 'nan'], 'interval'),
    (['-i', '0.0005'], 'interval'), (['-e', 'grafite'], 'graphite'), (['-m', 'cup'], 'cpu'), (['-e', ''], 'emitters'),
    (['-m', ''], 'modules'), (['-e', 'graphite,prot=1'], 'port'), (['-e', 'graphite,port=x'], 'port'),
    (['-e', 'graphite,host'], 'host'), (['-f', '/none/at/all'], '/none/at/all'), (['-f', '/'], '/'), (['-f', ''], ''),
    (['-f'], '-f'), (['-h', 'grafite'], 'graphite'), (['--list', 'bogus'], 'bogus'), (['--root', '/none'], '--root'),
    (['--root', ''], '--root'), (['--replay', '/none'], '--replay'), (['--replay', '/proc/self/fdinfo'], '--replay'),
    (['--bake', '/none'], '/none'), (['--bake', ''], '--bake'), (['--record', '/proc/none'], '--record'),
    (['--record', ''], '--record'), (['--bake'], '--bake'), (['-f', 'a\nb'], 'a'), (['wo\nrd'], 'wo'), (['-e', 'x\x1b[2J'], 'x'),
    (['--list', 'metrics', 'modules'], 'modules'), (['-n1', '--', '-x'], '--'), (['-e', '\udcff'], ''), (['-f', '\udcff'], ''),
])
def test_bad_usage_is_one_line_on_stderr_and_exit_code_2(tmp_path, arguments, words):
    code, out, err = forked(arguments, tmp_path)
    assert (code, out) == (2, ''), err
    assert err.count('\n') == 1 and err.endswith('\n'), err
    assert words in err and 'usage:' not in err and not err.startswith(':')
    assert all(' ' <= c < '\x7f' for c in err[:-1]), repr(err)


def test_each_mistake_of_a_file_is_a_line_with_its_place(run, tmp_path):
    (tmp_path / 'a.conf').write_text('{"clutser": "",\n"interval": "x",\n"modules": {"cup": {}},\n"a\\nb": 1}')
    for more in ((), ('--check',), ('-n', '1')):
        finished = run('-f', 'a.conf', *more, cwd=str(tmp_path))
        assert (finished.code, finished.out) == (2, '')
        assert [line.split(': ')[0] for line in finished.err.splitlines()] == ['a.conf:1', 'a.conf:2', 'a.conf:3', 'a.conf:4']


def test_a_file_that_is_no_text_names_the_line(run, tmp_path):
    (tmp_path / 'a.conf').write_bytes(b'{\n\n"cluster": "\xff"}')
    finished = run('-f', tmp_path / 'a.conf', '--check')
    assert finished.code == 2 and finished.err.startswith('%s:3: ' % (tmp_path / 'a.conf')) and finished.err.count('\n') == 1


def test_an_endless_file_is_refused_and_not_read_to_its_end(run):
    finished = run('-f', '/dev/zero')
    assert finished.code == 2 and finished.err.startswith('/dev/zero: ') and finished.err.count('\n') == 1


# -- what is printed --------------------------------------------------------------------------

def test_version_help_and_lists(run):
    assert re.match(r'statbadger \d+\.\d+\.\d+\n$', run('--version').out)
    for flags in (['-h'], ['--help']):
        finished = run(*flags)
        assert finished.code == 0 and finished.err == '' and finished.out.startswith('usage: statbadger.py ')
    for flag in ('-f', '-e', '-m', '-i', '-n', '--root', '--record', '--replay', '--check', '--list', '--example-config',
                 '--bake', '--version', '-h'):
        assert re.search(r'(?m)^  %s\b' % flag, finished.out), flag
    finished = run('-h', 'graphite')
    assert finished.code == 0
    for option in ('host', 'port', 'protocol', 'transport', 'prefix', 'tagged', 'timeout', 'blacklist', 'batch', 'tags'):
        assert '"%s": ' % option in finished.out, option
    assert '"per_core": false' in run('-h', 'cpu').out


def test_the_lists_name_what_there_is(run):
    names = [line.split()[0] for line in run('--list', 'modules').out.splitlines()]
    assert names[:6] == ['cpu', 'load', 'disk', 'network', 'memory', 'system'] and 'self' in names
    names = [line.split()[0] for line in run('--list', 'emitters').out.splitlines()]
    assert {'stdout', 'stdout_pretty', 'graphite'} <= set(names) and 'cpu' not in names
    both = run('--list').out
    assert re.search(r'(?m)^cpu ', both) and re.search(r'(?m)^graphite ', both)
    rows = {line.split()[0]: line for line in run('--list', 'metrics').out.splitlines()}
    assert 'percent' in rows['cpu.user'] and 'proc/stat' in rows['cpu.user']
    assert any(name.startswith('disk.reads.') for name in rows) and 'load.one' in rows


def test_check_prints_what_would_run_and_runs_nothing(run, tmp_path):
    (tmp_path / 'a.conf').write_text('{"modules": {"cpu": {"per_core": true}}, "emitters": '
                                     '{"dr": {"type": "graphite", "host": "far.example", "port": 2100}}}')
    finished = run('-f', 'a.conf', '--check', '--record', 'rec', cwd=str(tmp_path))
    assert finished.code == 0 and finished.err == '' and finished.out.startswith('a.conf: ok\n')
    assert re.search(r'(?m)^module +cpu: per_core true$', finished.out)
    assert re.search(r'(?m)^emitter +dr: .*far\.example', finished.out)
    assert run('--check').code == 0


def test_check_does_not_show_what_a_secret_file_held(run, tmp_path):
    (tmp_path / 'key').write_text('hunter2\n')
    (tmp_path / 'a.conf').write_text('{"emitters": {"graphite": {"prefix": "${file:key}.x", "tags": {"t": "${file:key}"}}}}')
    finished = run('-f', 'a.conf', '--check', cwd=str(tmp_path))
    assert finished.code == 0 and 'hunter2' not in finished.out + finished.err


@pytest.mark.parametrize('options', [
    {'type': 'opentsdb', 'host': '${file:key}'}, {'type': 'kairosdb', 'host': '${file:key}', 'tls': True},
    {'type': 'kairosdb', 'host': '${file:key}', 'protocol': 'telnet'}, {'type': 'influxdb', 'url': 'udp://${file:key}:8089'},
    {'type': 'influxdb', 'url': 'http://${file:key}:8089'}, {'type': 'druid', 'url': 'http://10.0.0.9:1/${file:key}'},
    {'type': 'druid', 'proxy': 'http://${file:key}:3128'}], ids=lambda options: ' '.join(map(str, options.values())))
def test_check_does_not_show_a_place_that_came_from_a_secret_file(run, tmp_path, options):
    (tmp_path / 'key').write_text('hunter2.example\n')
    (tmp_path / 'a.conf').write_text(json.dumps({'emitters': {'x': options}}))
    finished = run('-f', 'a.conf', '--check', cwd=str(tmp_path))
    assert finished.code == 0 and '${file:key}' in finished.out and ' -> ' in finished.out
    assert 'hunter2' not in finished.out + finished.err


def test_a_mistake_that_two_options_make_together_does_not_show_what_a_secret_file_held(run, tmp_path):
    (tmp_path / 'key').write_text('hunter2?x\n')
    (tmp_path / 'a.conf').write_text('{"emitters": {"opentsdb": {"host": "${file:key}"}}}')
    finished = run('-f', 'a.conf', '--check', cwd=str(tmp_path))
    assert finished.code == 2 and 'found host "${file:key}", need an ASCII name' in finished.err
    assert 'hunter2' not in finished.out + finished.err


def test_n_ticks_come_at_the_interval_with_flags_glued_or_apart(run):
    finished = run('-e', 'stdout', '-m', 'load', '-n3', '-i0.1')
    assert finished.code == 0 and finished.err == ''
    stamps = [round(payload['timestamp'] * 1000) for payload in lines(finished.out)]
    assert [s - stamps[0] for s in stamps] == [0, 100, 200] and stamps[0] % 100 == 0


def test_a_name_given_twice_prints_each_tick_twice(run):
    assert len(run('-e', 'stdout', '-e', 'stdout', '-m', 'load', '-n', '2', '-i', '0.05').out.splitlines()) == 4


def test_the_configuration_may_come_from_standard_input(run):
    finished = run('-f', '-', '-n', '1', stdin=b'\xef\xbb\xbf{"cluster": "piped", "interval": 0.05, // x\r\n'
                                               b'"modules": {"load": {},}, "emitters": {"stdout": {}}}')
    assert finished.code == 0 and lines(finished.out)[0]['cluster'] == 'piped'
    finished = run('-f', '-', '--check', stdin=b'{\n"clutser": ""}')
    assert finished.code == 2 and finished.err.startswith('standard input:2: clutser: ')


def test_a_configuration_from_standard_input_survives_the_re_exec_and_a_reload(agent):
    process = agent('-f', '-', stdin=subprocess.PIPE)
    process.stdin.write(b'{"cluster": "piped", "interval": 0.02, "modules": {"load": {}}, "emitters": {"stdout": {}}}')
    process.stdin.close()
    assert lines(process.stdout.readline().decode())[0]['cluster'] == 'piped'
    process.send_signal(signal.SIGHUP)
    assert b'reloaded' in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


# -- the program from standard input, baked ----------------------------------------------------

def test_the_program_may_come_from_standard_input_and_leaves_nothing_behind(tmp_path):
    for flags, count in ((QUICK, 1), (LONG, 8)):
        code, out, err = sh('"$P" - %s < "$B"' % flags, cwd=str(tmp_path))
        assert (code, err, len(lines(out))) == (0, '', count)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('flags', ['-f -', '-f - -n 1', '-f - --check', '--bake /dev/null'])
def test_what_needs_standard_input_or_a_file_of_its_own_says_so_there(flags):
    code, out, err = sh('"$P" - %s < "$B"' % flags)
    assert (code, out, err.count('\n')) == (2, '', 1) and 'standard input' in err


def test_a_baked_copy_runs_with_the_configuration_inside(run, tmp_path):
    (tmp_path / 'a.conf').write_bytes('\ufeff// \u20ac\r\n{"cluster": "a\'\'\'b\\"\\\\\\u20ac\u20ac{}%s", "region": "${R:-none}", /* """ */\r\n'
                                      '"interval": 0.05, "modules": {"load": {}}, "emitters": {"stdout": {}}}'.encode())
    baked = run('--bake', tmp_path / 'a.conf')
    assert baked.code == 0 and baked.err == ''
    copy = tmp_path / 'baked.py'
    copy.write_bytes(baked.out.encode('ascii'))
    finished = run('-n', '1', program=str(copy), env={'R': 'west'}, cwd='/')
    assert finished.code == 0 and finished.err == ''
    payload, = lines(finished.out)
    assert payload['cluster'] == 'a\'\'\'b"\\\u20ac\u20ac{}%s' and payload['region'] == 'west'
    assert [list(point)[0] for point in payload['points']][0] == 'load.one'
    finished = run('--check', '-e', 'graphite,host=far.example', '-m', 'cpu', program=str(copy))
    assert finished.code == 0 and 'far.example' in finished.out and not re.search('(?m)^module +load', finished.out)
    (tmp_path / 'b.conf').write_text('{"cluster": "other"}')
    assert 'cluster=other' in run('--check', '-f', tmp_path / 'b.conf', program=str(copy)).out


def test_a_baked_copy_bakes_another_or_says_why_not(run, tmp_path):
    (tmp_path / 'a.conf').write_text('{"cluster": "one"}')
    copy = tmp_path / 'baked.py'
    copy.write_text(run('--bake', tmp_path / 'a.conf').out)
    (tmp_path / 'a.conf').write_text('{"cluster": "two"}')
    finished = run('--bake', tmp_path / 'a.conf', program=str(copy))
    if finished.code == 0:
        copy.write_text(finished.out)
        assert 'cluster=two' in run('--check', program=str(copy)).out
    else:
        assert finished.code == 2 and finished.out == '' and finished.err.count('\n') == 1


def test_a_bad_configuration_is_not_baked(run, tmp_path):
    (tmp_path / 'a.conf').write_text('{\n"clutser": ""}')
    finished = run('--bake', 'a.conf', cwd=str(tmp_path))
    assert (finished.code, finished.out) == (2, '') and finished.err.startswith('a.conf:2: clutser: ')


# -- descriptors that are closed, broken or full ------------------------------------------------

@pytest.mark.parametrize('script, code, count', [
    ('"$P" "$B" %s <&-' % QUICK, 0, 1), ('"$P" "$B" %s <&- 2>&-' % QUICK, 0, 1), ('"$P" "$B" %s <&- 2>&-' % LONG, 0, 8),
    ('"$P" "$B" %s >&-' % QUICK, 1, 0), ('"$P" "$B" %s <&- >&- 2>&-' % QUICK, 1, 0), ('"$P" "$B" --bogus 2>&-', 2, 0),
    ('"$P" "$B" --bogus <&- >&- 2>&-', 2, 0), ('"$P" "$B" --version >&-', 1, 0), ('"$P" "$B" --check <&- >&- 2>&-', 1, 0),
    ('"$P" "$B" --version > /dev/full', 1, 0), ('"$P" "$B" -f - --check <&-', 2, 0),
])
def test_closed_descriptors_change_only_what_needs_them(script, code, count):
    found, out, err = sh(script)
    assert (found, len(out.splitlines())) == (code, count), err
    assert len(err.splitlines()) == (0 if '2>&-' in script or not code else 1), err


def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path):
    (tmp_path / 'host' / 'proc').mkdir(parents=True)
    (tmp_path / 'host' / 'proc' / 'loadavg').write_text('1.25 0.04 0.05 2/321 4242\n')
    code, out, err = sh('"$P" "$B" %s --root host --record rec <&- 2>&-' % QUICK, cwd=str(tmp_path))
    assert code == 0 and value(out, 'load.one') == 1.25
    copies = [os.path.join(base, name) for base, _, names in os.walk(str(tmp_path / 'rec')) for name in names]
    assert copies
    for path in copies:
        with open(path) as file:
            assert 'recording' not in file.read()


@pytest.mark.parametrize('flags', ['--list metrics', '--example-config', '-e stdout -m load -i 0.02', '-e stdout -m load -i 0.02 -n 5'])
def test_a_reader_that_goes_away_is_exit_code_0_without_a_word(tmp_path, flags):
    code, out, err = sh('{ "$P" "$B" %s; echo $? > code; } | head -n 1' % flags, cwd=str(tmp_path))
    assert (len(out.splitlines()), err, (tmp_path / 'code').read_text()) == (1, '', '0\n')


def test_a_reader_that_was_never_there_is_exit_code_0_without_a_word():
    for flags in ('--list', QUICK, '-e stdout -m load -i 0.02'):
        reading, writing = os.pipe()
        os.close(reading)
        process = subprocess.Popen([sys.executable, PROGRAM] + flags.split(), stdout=writing, stderr=subprocess.PIPE,
                                   env=clean_environment())
        os.close(writing)
        assert (process.communicate(timeout=20)[1], process.returncode) == (b'', 0)


# -- folders, users, interpreters ---------------------------------------------------------------

def test_a_working_folder_that_was_removed_does_no_harm(tmp_path):
    gone = 'mkdir gone && cd gone && rmdir ../gone && '
    code, out, err = sh(gone + '"$P" "$B" ' + QUICK, cwd=str(tmp_path))
    assert (code, err, len(lines(out))) == (0, '', 1)
    code, out, err = sh(gone + '"$P" "$B" -f x.conf --check', cwd=str(tmp_path))
    assert (code, out, err.count('\n')) == (2, '', 1)


def test_an_environment_without_home_path_or_anything_is_enough():
    code, out, err = sh('exec env -i "$P" "$B" %s' % LONG)
    assert (code, err, len(lines(out))) == (0, '', 8)


def test_a_read_only_folder_that_nobody_may_enter_is_enough_for_nobody():
    if os.geteuid() != 0:
        pytest.skip('only root can become nobody')

    def become_nobody():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    base = tempfile.mkdtemp()
    try:
        os.chmod(base, 0o755)
        program = os.path.join(base, 'statbadger.py')
        shutil.copy(PROGRAM, program)
        closed = os.path.join(base, 'closed')
        os.mkdir(closed)
        os.chmod(closed, 0o000)

        def start():
            os.chdir(closed)
            become_nobody()
        for python in (sys.executable, shutil.which('python3', path=os.defpath)):
            try:
                usable = python and subprocess.call([python, '-c', 'import sys; sys.exit(sys.version_info < (3, 6))'],
                                                    stderr=subprocess.DEVNULL, preexec_fn=become_nobody, cwd='/') == 0
            except OSError:
                usable = False
            if usable:
                break
        else:
            pytest.skip('nobody may run no python3 here')
        for script, count in (('"$P" "$B" ' + QUICK, 1), ('"$P" "$B" ' + LONG, 8), ('"$P" - %s < "$B"' % LONG, 8)):
            code, out, err = sh(script, python=python, program=program, preexec_fn=start, without=['HOME'])
            assert (code, err, len(lines(out))) == (0, '', count)
        assert sorted(os.listdir(base)) == ['closed', 'statbadger.py']
    finally:
        shutil.rmtree(base)


@pytest.fixture
def bare(tmp_path):
    """The environment of an interpreter that lacks what a minimal image lacks."""
    folder = tmp_path / 'lacking'
    (folder / 'urllib').mkdir(parents=True)
    for name in LACKING:
        (folder / (name + '.py')).write_text('raise ImportError("No module named %s")\n' % name)
    (folder / 'urllib' / '__init__.py').write_text('')
    (folder / 'urllib' / 'request.py').write_text('raise ImportError("No module named urllib.request")\n')
    env = {'PYTHONPATH': str(folder)}
    assert sh('"$P" -c "import queue" 2> /dev/null', env=env)[0] == 1
    return env


@pytest.mark.parametrize('flags, count', [
    (QUICK, 1), (LONG, 8), ('-e stdout -n 1 -i 0.05', 1), ('-e stdout_pretty -n 1 -i 0.05', None), ('--check', None),
    ('-h', None), ('-h cpu', None), ('--list metrics', None), ('--example-config', None),
])
def test_a_minimal_interpreter_is_enough(bare, flags, count):
    code, out, err = sh('"$P" "$B" ' + flags, env=bare)
    assert (code, err) == (0, '') and out
    assert count is None or len(lines(out)) == count


def test_a_minimal_interpreter_is_enough_for_kafka_also_with_a_login_and_gzip(bare):
    with KafkaStandin(sasl=['SCRAM-SHA-512'], users={'u': 'secret'}) as cluster:
        code, out, err = sh('"$P" "$B" -m load -n 2 -i 0.1 -e kafka,codec=gzip,sasl=scram-sha-512,username=u,'
                            'password=secret,brokers=%s' % cluster.address, env=bare)
        assert (code, out, err) == (0, '', '') and len(cluster.values('statbadger')) == 2


def test_an_emitter_that_needs_more_of_python_says_what_is_missing(bare):
    code, out, err = sh('"$P" "$B" -e influxdb08 --check', env=bare)
    assert (code, out, err.count('\n')) == (2, '', 1) and 'python3' in err and 'http' in err


def test_a_minimal_interpreter_reports_mistakes_in_one_line_too(bare):
    for flags in ('--bogus', '-n 0', '-e grafite'):
        code, out, err = sh('"$P" "$B" ' + flags, env=bare)
        assert (code, out, err.count('\n')) == (2, '', 1)


# -- where the host is ----------------------------------------------------------------------------

def test_root_wins_over_host_proc_and_host_sys_and_these_over_host_root(run, tmp_path):
    a, b, c = [str(make_host(tmp_path / name, load)) for name, load in (('a', '1.25'), ('b', '2.25'), ('c', '3.25'))]
    full = {'HOST_ROOT': a, 'HOST_PROC': os.path.join(b, 'proc'), 'HOST_SYS': os.path.join(c, 'sys')}
    for env, arguments, proc, sys_ in (
            ({}, [], '/proc', '/sys'), ({'HOST_ROOT': a}, [], a + '/proc', a + '/sys'), (full, [], b + '/proc', c + '/sys'),
            ({'HOST_PROC': full['HOST_PROC']}, [], b + '/proc', '/sys'), (full, ['--root', c], c + '/proc', c + '/sys'),
            (dict(full, HOST_PROC=''), [], a + '/proc', c + '/sys')):
        assert re.search('reads +%s and %s,' % (proc, sys_), run('--check', *arguments, env=env).out), (env, arguments)
    for env, arguments, load in (({'HOST_ROOT': a}, [], 1.25), (full, [], 2.25), (full, ['--root', c], 3.25)):
        assert value(run(*(QUICK.split() + arguments), env=env).out, 'load.one') == load


# -- the re-exec ------------------------------------------------------------------------------------

def test_a_long_run_takes_far_less_memory_than_one_without_the_re_exec(agent):
    shed = agent('-e', 'stdout', '-i', '0.05')
    kept = agent('-e', 'stdout', '-i', '0.05', env={'STATBADGER_NO_REEXEC': '1'})
    for process in (shed, kept):
        assert process.stdout.readline() and process.stdout.readline()
    assert status(shed.pid, 'VmRSS') < 0.8 * status(kept.pid, 'VmRSS')
    assert b'statbadger.py' in command_line(kept.pid) and b'/proc/self/fd/' not in command_line(kept.pid)


def test_the_process_list_shows_the_name_and_no_argument(agent):
    process = agent('-e', 'stdout,tags.key=hunter2', '-m', 'load', '-i', '0.05')
    assert process.stdout.readline()
    assert b'hunter2' not in command_line(process.pid)
    with open('/proc/%d/comm' % process.pid) as file:
        assert file.read() == 'statbadger\n'
    for name in os.listdir('/proc/%d/fd' % process.pid):
        assert 'memfd' not in os.readlink('/proc/%d/fd/%s' % (process.pid, name))


def test_a_signal_right_after_the_re_exec_ends_the_run_in_order(agent):
    for number in (signal.SIGTERM, signal.SIGINT):
        process = agent('-e', 'stdout', '-m', 'load', '-i', '0.05')
        reexeced(process)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (0, b'')


def test_a_hangup_right_after_the_re_exec_ends_nothing(agent):
    process = agent('-e', 'stdout', '-m', 'load', '-i', '0.05')
    reexeced(process)
    for _ in range(5):
        process.send_signal(signal.SIGHUP)
    for _ in range(5):
        assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0 and b'error' not in process.stderr.read()


def test_signals_at_any_moment_of_the_start_leave_no_traceback_of_ours_and_no_hang(agent):
    started = []
    for i in range(8):
        started.append((agent('-e', 'stdout', '-m', 'load', '-i', '0.05', stdout=subprocess.DEVNULL), 0.03 * (i + 1)))
        time.sleep(started[-1][1])
        started[-1][0].send_signal(signal.SIGTERM)
    for process, after in started:
        err = process.communicate(timeout=10)[1]
        assert process.returncode in (0, -signal.SIGTERM) and err == b'', (after, err)


def test_the_re_exec_keeps_the_pid_the_environment_and_the_folder(agent, tmp_path):
    (tmp_path / 'a.conf').write_text('{"cluster": "${SB_TEST}", "interval": 0.05, "modules": {"load": {}}, "emitters": {"stdout": {}}}')
    process = agent('-f', 'a.conf', cwd=str(tmp_path), env={'SB_TEST': 'kept'})
    assert lines(process.stdout.readline().decode())[0]['cluster'] == 'kept'
    assert os.readlink('/proc/%d/cwd' % process.pid) == os.path.realpath(str(tmp_path))


def test_an_interpreter_started_with_flags_stays_one(tmp_path):
    for flags in ('-I', '-S -E', '-O -B -u', '-W error -X dev'):
        code, out, err = sh('"$P" %s "$B" %s' % (flags, LONG), cwd=str(tmp_path))
        assert (code, err, len(lines(out))) == (0, '', 8), flags


# -- last, what has waited all the time ---------------------------------------------------------------

def test_a_full_disk_is_said_and_is_exit_code_1(full_disk):
    err = full_disk.communicate(timeout=30)[1].decode()
    assert full_disk.returncode == 1
    assert err.splitlines()[-1].startswith('statbadger: stdout: 1 of 1 ticks were not delivered: No space left')
