"""The floor plan, enforced: from the syntax tree of the program."""
import ast
import os
import re
import symtable

from conftest import PROGRAM, ROOT

SECTION = re.compile(r'^# == ([0-9]+) ([A-Z][A-Z ]+[A-Z])\b')
NAMES = ['HEADER', 'VOCABULARY', 'CONFIG', 'KERNEL FILES', 'MODULES', 'RATES', 'ENCODING', 'PAYLOADS', 'EMITTERS',
         'TRANSPORTS', 'DELIVERY', 'SCHEDULER', 'AGENT', 'COMMAND LINE']
TEXT = open(PROGRAM, 'rb').read().decode('ascii')
TREE = ast.parse(TEXT)


def sections():
    """[(line, number, name)]"""
    matches = [(i, SECTION.match(line)) for i, line in enumerate(TEXT.split('\n'), 1)]
    return [(i, int(m.group(1)), m.group(2)) for i, m in matches if m]


SECTIONS = sections()


def floor(line):
    return max((start, number) for start, number, name in SECTIONS if start <= max(line, 2))[1]


def definitions():
    """{name: line} of what the module defines at its top level."""
    out = {}
    for node in TREE.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            out.setdefault(node.name, node.lineno)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for name in ast.walk(target):
                    if isinstance(name, ast.Name):
                        out.setdefault(name.id, node.lineno)
    return out


def functions():
    return [n for n in ast.walk(TREE) if isinstance(n, ast.FunctionDef)]


def length(node):
    return max(getattr(n, 'lineno', 0) for n in ast.walk(node)) - node.lineno + 1


def test_the_fourteen_sections_stand_in_order():
    assert [(number, name) for line, number, name in sections()] == list(enumerate(NAMES))


def test_a_section_uses_only_itself_and_the_sections_above():
    known, wrong = definitions(), []

    def visit(table):
        for symbol in table.get_symbols():
            name = symbol.get_name()
            if table.get_type() != 'module' and symbol.is_referenced() and symbol.is_global() and name in known:
                if floor(known[name]) > floor(table.get_lineno()):
                    wrong.append((table.get_name(), name))
        for child in table.get_children():
            visit(child)
    visit(symtable.symtable(TEXT, PROGRAM, 'exec'))
    assert wrong == []


def uses(names):
    """The floors on which one of the names is used as a name of its own."""
    found = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Name) and node.id in names:
            found.add(floor(node.lineno))
    return found


def test_sockets_files_and_time_are_touched_on_their_floors_only():
    assert uses({'socket', '_socket'}) <= {3, 9}
    assert uses({'open'}) <= {3, 9, 10, 12}
    assert uses({'time'}) <= {3, 9, 11, 12}


def test_functions_are_short():
    lengths = sorted(length(f) for f in functions())
    assert lengths[len(lengths) // 2] <= 8
    assert lengths[int(len(lengths) * .9)] <= 25
    assert lengths[-1] <= 60


def test_lines_are_ascii_and_not_too_long():
    assert [i for i, line in enumerate(TEXT.split('\n'), 1) if len(line) > 100] == []


def test_inheritance_is_no_deeper_than_one():
    classes = {n.name: [b.id for b in n.bases if isinstance(b, ast.Name)] for n in TREE.body if isinstance(n, ast.ClassDef)}
    for name, bases in classes.items():
        assert not any(classes.get(base) for base in bases if base not in ('Exception', 'OSError', 'str')
                       and any(b in classes for b in classes.get(base, []))), name


def test_only_the_standard_library_is_imported_and_no_module_that_minimal_pythons_lack():
    lacking = set('json urllib.request http hmac queue shutil gzip uuid resource difflib ctypes dataclasses getpass '
                  'secrets termios mmap multiprocessing'.split())
    at_the_top, imported = names_imported(TREE.body), names_imported(ast.walk(TREE))
    assert not at_the_top & (lacking | {'ssl', 'hashlib', 'zlib', 'binascii'})
    assert imported & lacking <= {'urllib.request'} and 'http.client' not in at_the_top
    # re is for those who group processes by regular expressions
    assert 're' not in at_the_top
    assert not imported & {'threading', 'logging'}, 'costs memory; say why here when one is needed'


def names_imported(nodes):
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return found


def test_there_is_no_dangerous_call():
    calls = {n.func.id for n in ast.walk(TREE) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert not calls & {'eval', '__import__'}
    assert 'shell=True' not in TEXT and 'os.system' not in TEXT and 'pickle.load' not in TEXT


def test_mutable_globals_are_the_two_registries():
    mutable = []
    for node in TREE.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Dict, ast.List, ast.Set)):
            mutable += [t.id for t in node.targets if isinstance(t, ast.Name)]
    tables = {'ESCAPES', 'LETTERS', 'KAFKA_ERRORS', 'KAFKA_ADVICE'}
    assert {m for m in mutable if not m.endswith('OPTIONS')} - tables == {'MODULES', 'EMITTERS'}


def test_the_top_level_holds_what_the_design_says():
    known = {'statbadger.py', 'statbadger.conf.example', 'tests', 'Makefile', 'LICENSE', 'README.md', 'CHANGELOG.md',
             '.ci', '.gitignore', '.git', '.venv', '.pytest_cache', '__pycache__'}
    assert set(os.listdir(ROOT)) <= known


def test_public_functions_say_what_comes_out():
    public = [n for n in TREE.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
    bare = [n.name for n in public if not ast.get_docstring(n) and length(n) > 12]
    assert bare == []
