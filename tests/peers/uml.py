"""A kernel of its own: User-Mode Linux (Debian's user-mode-linux) runs as a process, without KVM and without root.

It boots on this machine's files, read-only, and has a /proc, a /sys, pure cgroup v2 and a disk of its own. One
processor, no pressure files; without a disk its /proc/diskstats is empty.
"""
import os
import signal
import subprocess

from peer import command, require

INIT = '''#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
mount -t devtmpfs none /dev
mount -t cgroup2 none /sys/fs/cgroup
for controller in cpu cpuset memory io pids; do
    echo +$controller >/sys/fs/cgroup/cgroup.subtree_control
done 2>/dev/null
cd /run
echo '== begin =='
/bin/sh %(script)s 2>&1
echo "== end $? =="
echo o >/proc/sysrq-trigger
sleep 5
'''


def boot(script, folder, memory='256M', disk=0, seconds=90):
    """The text that a shell script prints in a User-Mode Linux, which is off again when this returns.

    folder: an empty folder of ours for what it needs. It may write to /run, where it begins. disk: bytes of
    /dev/ubda. The script begins with every controller of cgroup v2 that there is switched on at the root."""
    program = require(command('linux.uml'), 'User-Mode Linux', 'there is no linux.uml: apt-get install user-mode-linux')
    folder = str(folder)
    path, init = os.path.join(folder, 'script.sh'), os.path.join(folder, 'init.sh')
    with open(path, 'w') as file:
        file.write(script)
    with open(init, 'w') as file:
        file.write(INIT % {'script': path})
    os.chmod(init, 0o755)
    argv = [program, 'mem=%s' % memory, 'root=/dev/root', 'rootfstype=hostfs', 'rootflags=/', 'ro', 'init=%s' % init,
            'con=null', 'con0=null,fd:1', 'quiet', 'uml_dir=%s/' % folder, 'umid=uml']
    if disk:
        with open(os.path.join(folder, 'disk'), 'wb') as file:
            file.truncate(disk)
        argv.append('ubd0=%s' % os.path.join(folder, 'disk'))
    process = subprocess.Popen(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, env=dict(os.environ, TMPDIR=folder), start_new_session=True)
    try:
        text = process.communicate(timeout=seconds)[0].decode('utf-8', 'replace').replace('\r\n', '\n')
    finally:
        if process.poll() is None:              # its processes are ours too: a group of their own
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    begin, marker, rest = text.partition('== begin ==\n')
    out, end, tail = rest.rpartition('== end ')
    assert marker and end, 'User-Mode Linux did not come up, or not to its end:\n%s' % text[-3000:]
    assert tail.startswith('0 '), out[-3000:] + end + tail
    return out
