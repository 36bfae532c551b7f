"""What in the README is generated from the program: checked by a test, rewritten by `make example`."""
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
README = os.path.join(ROOT, 'README.md')
BLOCKS = (('metrics', ['--list', 'metrics']), ('usage', ['-h']))


def printed(arguments):
    return subprocess.check_output([sys.executable, os.path.join(ROOT, 'statbadger.py')] + arguments).decode()


def split(text, name):
    """(before, inside, after) of the block that stands between two comments."""
    start, end = '<!-- %s -->\n```\n' % name, '```\n<!-- end of %s -->' % name
    before, _, rest = text.partition(start)
    inside, _, after = rest.partition(end)
    assert after, 'README.md has no block %s' % name
    return before + start, inside, end + after


def read():
    with open(README, 'rb') as file:
        return file.read().decode()


def rewrite():
    text = read()
    for name, arguments in BLOCKS:
        before, inside, after = split(text, name)
        text = before + printed(arguments) + after
    with open(README, 'wb') as file:
        file.write(text.encode())


if __name__ == '__main__' and sys.argv[1:] == ['rewrite']:
    rewrite()
