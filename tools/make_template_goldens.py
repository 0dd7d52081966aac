#!/usr/bin/env python3
"""Writes what Jinja makes of tests/data/templates: chats.json (whole templates over conversations) and snippets.json.

  make_template_goldens.py [--output tests/data/templates]

Needs `pip install jinja2`. The environment is the one that transformers renders chat templates in. Times are fixed: run
with TZ=UTC.
"""

import argparse
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = pathlib.Path(__file__).resolve().parent.parent
NOW = 1_750_000_000


class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    spans = []
    written = []

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        text = caller()
        begin = len("".join(self.written).encode())
        self.spans.append([begin, begin + len(text.encode())])
        return text


def environment():
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(form)
    return env


def render(env, template, variables):
    """{"text": …, "generations": …}, or {"error": …}."""
    Generation.spans.clear()
    Generation.written.clear()
    try:
        for piece in env.from_string(template).generate(**variables):
            Generation.written.append(piece)
        return {"text": "".join(Generation.written), "generations": [list(span) for span in Generation.spans]}
    except Exception as error:  # whatever a template can raise
        return {"error": f"{type(error).__name__}: {error}"}


# --- Conversations

TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather of a place.\nNow & <soon>",
        "parameters": {"type": "object", "properties": {
            "place": {"type": "string", "description": "Where, e.g. 'Zürich'"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": None},
            "days": {"type": "integer", "minimum": 1, "maximum": 1.5},
            "tags": {"type": "array", "items": {"type": ["string", "number"]}, "description": "free"},
            "options": {"type": "object", "additionalProperties": {"type": "boolean"}}},
            "required": ["place"], "$defs": {"z": {"a": 1, "b": [True, None]}}},
        "return": {"type": "object"}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
CALLS = [
    {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"place": "Zürich \"ZH\"", "days": 2, "options": {"wind": True}}}},
    {"id": "abcdef124", "type": "function", "function": {"name": "now", "arguments": {}}},
]


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "user": [turn("user", "Hi")],
    "system": [turn("system", " You are terse. "), turn("user", "Hi\n")],
    "turns": [turn("system", "S"), turn("user", "One"), turn("assistant", " Uno "), turn("user", "Two"), turn("assistant", "Dos"), turn("user", "Three")],
    "answered": [turn("user", "One"), turn("assistant", "Uno")],
    "empty": [turn("user", ""), turn("assistant", ""), turn("user", "")],
    "unicode": [turn("user", "Ünïcödé 😀 世界\u2028 \u00a0'\"\\\t<&>"), turn("assistant", "\x07 ﬁ ΟΔΟΣ"), turn("user", "{{ messages }} {% if %}")],
    "two users": [turn("user", "One"), turn("user", "Two")],
    "none": [],
    "tool": [turn("user", "Weather?"), turn("assistant", "", tool_calls=CALLS[:1]), turn("tool", "sunny", name="get_weather", tool_call_id="abcdef123"), turn("assistant", "Sunny.")],
    "tools": [turn("system", "S"), turn("user", "Weather?"), turn("assistant", "Let me see", tool_calls=CALLS), turn("tool", "{\"t\": 21.5}", tool_call_id="abcdef123"), turn("tool", "noon", tool_call_id="abcdef124"), turn("user", "And?")],
    "bad id": [turn("user", "W"), turn("assistant", None, tool_calls=[{"id": "x", "function": {"name": "f", "arguments": "{\"a\": 1}"}}])],
    "parts": [turn("system", [{"type": "text", "text": "A"}, {"type": "image"}, {"type": "text", "text": "B"}]), turn("user", [{"type": "text", "text": "C"}, {"type": "text", "text": "D"}])],
    "thoughts": [turn("user", "One /no_think"), turn("assistant", "<think>\nhm\n</think>\n\nUno"), turn("user", "Two"), turn("assistant", "<think>a</think>b<think>\nc\n</think>\n\nDos")],
    "reasoning": [turn("user", "One"), turn("assistant", "Uno", reasoning_content="why\n"), turn("tool", "x"), turn("tool", "y"), turn("assistant", "Dos", reasoning_content="\nbecause")],
}
VARIABLES = [
    {"name": "plain", "input": {"add_generation_prompt": True}},
    {"name": "no prompt", "input": {"add_generation_prompt": False}},
    {"name": "with tools", "input": {"add_generation_prompt": True, "tools": TOOLS}},
    {"name": "with documents", "input": {"add_generation_prompt": True, "documents": [{"title": "T", "text": "é \"x\"", "doc_id": 1}]}},
    {"name": "switches", "input": {"add_generation_prompt": True, "variables": {
        "thinking": True, "enable_thinking": False, "truncate_history_thinking": False, "date_string": "1 Jan 2000",
        "builtin_tools": ["code_interpreter", "search"], "controls": {"length": "short"}}}},
    {"name": "switches and tools", "input": {"add_generation_prompt": True, "tools": TOOLS[1:], "documents": [{"text": "D"}],
                                             "variables": {"controls": {"length": "long"}, "tools_in_user_message": False}}},
]


def chats(env, folder):
    cases = []
    for path in sorted(folder.glob("*.jinja")):
        for name, messages in CONVERSATIONS.items():
            for variant in VARIABLES:
                if variant["name"].startswith(("switches", "with documents")) and name not in ("turns", "tools", "thoughts"):
                    continue
                given = variant["input"]
                variables = {"bos_token": "<s>", "eos_token": "</s>", "messages": messages, "tools": given.get("tools"),
                             "documents": given.get("documents"), "add_generation_prompt": given["add_generation_prompt"],
                             **given.get("variables", {})}
                result = render(env, path.read_text(), variables)
                cases.append({"template": path.name, "conversation": name, "variant": variant["name"], **result})
    return {"now": NOW, "conversations": CONVERSATIONS, "variants": {v["name"]: v["input"] for v in VARIABLES}, "cases": cases}


# --- Snippets

CONTEXT = {
    "zero": 0, "one": 1, "n": 7, "minus": -7, "x": 2.5, "big": 1e22, "tiny": 1.5e-7, "t": True, "f": False, "nothing": None,
    "s": "Hello, World", "empty": "", "padded": "  a b  c \n", "u": "Straße ÉCLAIR ﬁn ΟΔΟΣ ǆ 😀", "q": "it's \"q\"", "html": "<a href='x'>&</a>",
    "list": [3, 1, 2], "words": ["b", "A", "c", "a"], "nested": [[1, 2], [3, [4]]], "none_list": [],
    "d": {"b": 1, "a": [1, {"k": None}], "items": "shadowed", "é": 2.0}, "none_dict": {},
    "users": [{"name": "Bo", "age": 3, "tags": ["x"], "on": True}, {"name": "al", "age": 30, "tags": [], "on": False}, {"name": "Cy", "age": 3, "tags": ["y", "z"]}],
}

# Separated by ;; where a line has several.
EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 5 ;; 7 // 2 ~ '' ;; -7 // 2 ;; 7 % -3 ;; -7 % 3 ;; 7.5 // -2 ;; -7.5 % 2 ;; 2 ** 10 ;; 2 ** -1 ;; 2 ** 3 ** 2 ;; -2 ** 2 ;; 10 / 4 ;; 10 / 5
1 + 2.0 ;; 0.1 + 0.2 ;; 1e16 ;; 1e15 ;; 123456789012345680.0 ;; 1e-5 ;; 0.0001 ;; 1.0 ;; 1e300 * 1e10 ;; -0.0 ;; 1_000 ;; 0x1F ;; 0b101 ;; 0o17 ;; 5.0e-324
true + true ;; not true ;; t and f ;; zero or s ;; s and none ;; none or empty or 'z' ;; not (zero or empty) ;; t if f ;; t if f else s ;; 1 if none else 2 if f else 3
1 < 2 ;; 1 < 2 < 3 ;; 3 > 2 > 2 ;; 1 == 1.0 ;; 1 == true ;; 'a' < 'b' ;; 'Z' < 'a' ;; 'é' > 'z' ;; [1, 2] < [1, 3] ;; [1] < [1, 0] ;; (1, 'a') == (1, 'a') ;; [1] == (1,) ;; none == none
'a' in 'cat' ;; 'x' not in 'cat' ;; 1 in list ;; 9 in list ;; 'a' in d ;; 'zz' in d ;; 2 in nested ;; [1, 2] in nested ;; '' in s ;; none in [none] ;; 1.0 in list ;; missing == missing2
'a' ~ 1 ~ none ~ true ~ [1, 'x'] ~ {'k': 1.5} ;; 'ab' * 3 ;; 3 * 'ab' ;; 'ab' * -1 ;; [1] * 3 ;; [1] + [2] ;; (1,) + (2,) ;; 'a' 'b' ;; 'a' + 'b'
s[0] ;; s[-1] ;; s[1:3] ;; s[:-1] ;; s[::-1] ;; s[::2] ;; s[10:2:-3] ;; u[3:6] ;; u[-1] ;; u[::-1] ;; list[0] ;; list[-1] ;; list[5] ;; list[1:] ;; list[::-1] ;; list[-2:] ;; nested[1][1][0] ;; nested.1.0 ;; d['b'] ;; d.b ;; d['a'][1].k ;; d['items'] ;; d.zz ;; d['zz'] ;; s.zz ;; s[100] ;; s[1:100] ;; s[5:2] ;; (1, 2, 3)[1:] ;; range(10)[2:8:2]
list ;; words ;; nested ;; d ;; none_dict ;; none_list ;; (1,) ;; () ;; (1, 2) ;; x ;; big ;; tiny ;; t ;; nothing ;; q ;; [q, u, "a'b", 'a"b', '\n\t\\ \x07 \x7f \u00a0\u00e9\u200b'] ;; missing ;; [missing2 | default(1)] ;; {'a': {'b': [1, 2.0, none, true]}} ;; {1: 2, none: 3, true: 4}
s.upper() ;; s.lower() ;; s.title() ;; s.capitalize() ;; s.swapcase() ;; u.upper() ;; u.lower() ;; u.title() ;; u.capitalize() ;; "they're bill's".title() ;; 'ΑΣ ΑΣΑ Σ'.lower()
padded.strip() ;; padded.lstrip() ;; padded.rstrip() ;; s.strip('Hd') ;; s.lstrip('leH') ;; s.rstrip('dlr') ;; u.strip('S😀') ;; '\x1c a\u2003\u0085'.strip() ;; '\u200ba'.strip()
s.split() ;; padded.split() ;; padded.split(' ') ;; 'a,b,,c'.split(',') ;; 'a,b,,c'.split(',', 1) ;; 'a,b,,c'.rsplit(',', 1) ;; ' a b  c '.split(none, 1) ;; ' a b  c '.rsplit(none, 1) ;; ''.split() ;; ''.split(',') ;; 'a b'.split(maxsplit=0) ;; 'x'.split(sep='x') ;; 'a--b'.partition('--') ;; 'ab'.partition('-') ;; 'a-b-c'.rpartition('-') ;; 'a\nb\r\nc\u2028d\n'.splitlines() ;; 'a\nb\n'.splitlines(true)
s.startswith('Hell') ;; s.startswith(('x', 'H')) ;; s.endswith('ld') ;; s.endswith('') ;; s.startswith('World', 7) ;; s.startswith('o', 4, 5) ;; s.find('o') ;; s.find('o', 5) ;; s.find('zz') ;; s.rfind('o') ;; u.find('😀') ;; s.index('W') ;; s.count('o') ;; s.count('') ;; s.count('l', 3) ;; s.replace('l', 'L') ;; s.replace('l', 'L', 1) ;; 'ab'.replace('', '-') ;; 'ab'.replace('', '-', 2) ;; s.replace('zz', 'y') ;; s.removeprefix('Hello') ;; s.removesuffix('x') ;; s.removesuffix('World')
', '.join(words) ;; ''.join([]) ;; '-'.join('abc') ;; '{} {}'.format(1, 'x') ;; '{1}{0}{1}'.format('a', 'b') ;; '{a[k]} {b.zz}|{c!r}'.format(a={'k': 1}, b={'zz': 2}, c='q') ;; '{{}}'.format() ;; '{:>5}|{:<5}|{:^5}|{:*^7}'.format('a', 'b', 'c', 'd') ;; '{:05d} {:+d} {:x} {:#X} {:b} {:,}'.format(42, 42, 255, 255, 5, 1234567) ;; '{:.2f} {:8.3f} {:e} {:g} {:%} {:.3}'.format(3.14159, 2.5, 12345.678, 0.0001, 0.5, 2.0) ;; '{:.2} {:10.3}!'.format('abcdef', 'abcdef') ;; '{:{w}}'.format('a', w=4)
'%s and %s' % ('a', 1) ;; '%s' % none ;; '%d%%' % 5 ;; '%5.2f|%-6s|%06d|%+d|% d' % (2.345, 'ab', 42, 7, 7) ;; '%x %X %o %#x %e %g' % (255, 255, 8, 255, 1234.5, 0.00001) ;; '%(a)s-%(b)03d' % {'a': 'x', 'b': 7} ;; '%r %s' % ('a', [1, 'b']) ;; '%c%c' % ('a', 98) ;; '%.2s' % 'abc' ;; '%s' % [1, 2]
'abc'.isalpha() ;; '12'.isdigit() ;; 'a1'.isalnum() ;; ' '.isspace() ;; 'AB'.isupper() ;; 'ab'.islower() ;; 'Ab Cd'.istitle() ;; '٣'.isdigit() ;; ''.isalpha() ;; 'é'.isalpha() ;; 'ab'.center(7) ~ '!' ;; 'abc'.center(6, '*') ;; 'a'.ljust(3, '.') ;; 'a'.rjust(3) ;; '-42'.zfill(6) ;; '42'.zfill(1)
d.get('b') ;; d.get('zz') ;; d.get('zz', 'q') ;; d.keys() ;; d.values() ;; d.items() ;; d.keys() | list ;; d.copy() == d ;; list.index(2) ;; list.count(1) ;; (1, 2, 1).count(1) ;; list.copy() ;; none_dict.items()
s | length ;; u | length ;; list | count ;; d | length ;; range(5) | length ;; '' | length ;; missing | length ;; none_list | length ;; d.items() | length
s | upper ;; s | lower ;; u | upper ;; u | lower ;; s | capitalize ;; u | capitalize ;; s | title ;; 'a-b c(d e)\nf [g] {h} <i> x_y' | title ;; u | title ;; 5 | upper ;; none | lower ;; missing | upper ;; true | string ;; 1.0 | string ;; list | string
padded | trim ;; s | trim('Hd') ;; 5 | trim ;; missing | trim ;; s | replace('o', '0') ;; s | replace('l', 'L', 2) ;; 12321 | replace(2, 'x') ;; 'ab' | replace('', '-')
missing | default ;; missing | default('x') ;; empty | default('x') ;; empty | default('x', true) ;; none | d('y') ;; none | d('y', boolean=true) ;; d.zz | default('z') ;; 0 | default(5, true) ;; missing | d
list | first ;; list | last ;; none_list | first ;; none_list | last ;; s | first ;; s | last ;; u | last ;; d | first ;; range(3) | last ;; d.items() | first ;; words | select('equalto', 'zz') | first
words | join ;; words | join(', ') ;; list | join('-') ;; users | join(', ', attribute='name') ;; [1, none, 2.5, true] | join('|') ;; 'abc' | join('.') ;; missing | join('x') ;; nested | join(' ') ;; users | map(attribute='age') | join(',')
words | sort ;; words | sort(case_sensitive=true) ;; words | sort(reverse=true) ;; list | sort ;; users | sort(attribute='name') | map(attribute='name') | list ;; users | sort(attribute='age,name') | map(attribute='name') | list ;; users | sort(reverse=true, attribute='age') | map(attribute='name') | join ;; [[2, 'b'], [1, 'c'], [2, 'a']] | sort ;; [1.5, 1, true] | sort ;; 'hello' | sort | join
d | dictsort ;; d | dictsort(true) ;; {'b': 2, 'A': 3, 'c': 1} | dictsort ;; {'b': 2, 'A': 3, 'c': 1} | dictsort(true) ;; {'b': 2, 'A': 3, 'c': 1} | dictsort(by='value') ;; {'b': 2, 'A': 3} | dictsort(reverse=true) ;; none_dict | dictsort
words | unique | list ;; ['a', 'A', 'b', 'a'] | unique | list ;; ['a', 'A', 'b'] | unique(case_sensitive=true) | list ;; users | unique(attribute='age') | map(attribute='name') | list ;; [1, 1.0, true, 2] | unique | list
list | reverse | list ;; s | reverse ;; d | reverse | list ;; none_list | reverse | list ;; range(4) | reverse | list ;; words | map('upper') | reverse | list
list | min ;; list | max ;; words | min ;; words | max ;; words | max(case_sensitive=true) ;; users | min(attribute='age') ;; none_list | min ;; 'hello' | max ;; [1, 2.5] | max
list | sum ;; [1.5, 2] | sum ;; none_list | sum ;; users | sum(attribute='age') ;; list | sum(start=10) ;; nested | sum(start=[])
words | map('upper') | list ;; words | map('replace', 'a', 'x') | list ;; users | map(attribute='name') | list ;; users | map(attribute='tags.0') | list ;; users | map(attribute='on', default='?') | list ;; users | map(attribute='zz') | list ;; missing | map('upper') | list ;; list | map('string') | join('+') ;; [[1], [2, 3]] | map('length') | list ;; [' a', 'b '] | map('trim') | list
list | select('odd') | list ;; list | reject('odd') | list ;; [0, 1, '', 'a', none] | select | list ;; [0, 1, '', 'a', none] | reject | list ;; list | select('gt', 1) | list ;; list | select('>=', 2) | list ;; list | select('in', [1, 2]) | list ;; words | select('equalto', 'A') | list ;; [1, 'a', none, 2.0] | select('string') | list ;; [1, 'a', true, 2.0] | select('number') | list ;; list | select('divisibleby', 2) | list
users | selectattr('on') | map(attribute='name') | list ;; users | rejectattr('on') | map(attribute='name') | list ;; users | selectattr('age', 'equalto', 3) | map(attribute='name') | list ;; users | selectattr('on', 'defined') | list | length ;; users | rejectattr('on', 'defined') | map(attribute='name') | list ;; users | selectattr('tags') | list | length ;; users | selectattr('name', 'in', ['Bo', 'Cy']) | map(attribute='age') | list ;; (users | selectattr('age', 'gt', 100)) and 1 ;; users | selectattr('age', 'gt', 100) | list or 'none'
'12' | int ;; ' -12 ' | int ;; '12.7' | int ;; 'x' | int ;; 'x' | int(5) ;; '0x1A' | int(0, 16) ;; 'ff' | int(base=16) ;; '0b11' | int(0, 2) ;; '1_000' | int ;; '1__0' | int ;; 12.9 | int ;; -12.9 | int ;; true | int ;; none | int ;; '' | int(default=3) ;; list | int ;; '1e3' | int ;; 'inf' | int
'1.5' | float ;; 'x' | float ;; '1e3' | float ;; ' 2 ' | float ;; 'nan' | float ;; '-inf' | float ;; '1_0.5' | float ;; none | float(0.5) ;; 3 | float ;; true | float
-5 | abs ;; -5.5 | abs ;; minus | abs ;; -(5) | abs ;; 2.5 | round ;; 3.5 | round ;; 2.675 | round(2) ;; 2.4 | round(method='ceil') ;; 2.6 | round(0, 'floor') ;; -2.5 | round ;; 7 | round ;; 1234 | round(-2) ;; 1.005 | round(2) ;; 42.55 | round(1, 'floor') ;; 2.5 | round | int
d | items | list ;; none_dict | items | list ;; missing | items | list ;; d | list ;; s | list ;; nested | list ;; missing | list ;; range(3) | list ;; (1, 2) | list
html | escape ;; html | e ;; html | safe ;; html | escape | escape ;; (html | safe) + html ;; html + (html | safe) ;; (html | escape) ~ '<' ;; html | forceescape ;; '<' | e | upper ;; ('<' | safe) is escaped ;; ('%s' | safe) % '<' ;; ('a' | safe) * 2 ~ '<' ;; ['<' | safe] ;; ('<b>' | safe) | trim ;; ('a<' | safe).replace('a', '<') ;; ('<' | safe) | string + '<'
'a\nb\n\nc' | indent ;; 'a\nb' | indent(2, true) ;; 'a\n\nb' | indent(2, blank=true) ;; 'a\nb' | indent('> ') ;; '' | indent ;; 'a\r\nb\n' | indent(1) ;; 'x' | indent(width=3, first=true)
d | tojson ;; u | tojson ;; u | tojson(ensure_ascii=true) ;; d | tojson(indent=2) ;; nested | tojson(indent=1) ;; d | tojson(sort_keys=true) ;; list | tojson(separators=(',', ':')) ;; d | tojson(indent=4, separators=(', ', '=')) ;; [1.0, 1e22, 1e-7, -0.0, true, none, 'a"\\\n\x07\x7f/'] | tojson ;; (1, 2) | tojson ;; none_dict | tojson(indent=2) ;; none_list | tojson(indent=2) ;; {'a': {}, 'b': []} | tojson(indent=2) ;; {1: 2, none: 3, 2.5: 4, false: 5} | tojson ;; 'é' | tojson ;; html | tojson ;; '\u2028' | tojson ;; d | tojson(true) ;; [missing | default(none)] | tojson ;; {'x': [1, {'y': 'z'}]} | tojson(indent='\t') ;; list | tojson(indent=0)
missing is defined ;; s is defined ;; missing is undefined ;; d.zz is defined ;; d.b is defined ;; nothing is none ;; nothing is not none ;; s is string ;; 1 is string ;; 1 is number ;; t is number ;; 1 is integer ;; t is integer ;; 1.0 is integer ;; x is float ;; 1 is float ;; t is boolean ;; 1 is boolean ;; d is mapping ;; list is mapping ;; list is iterable ;; s is iterable ;; 1 is iterable ;; missing is iterable ;; d is sequence ;; s is sequence ;; (1,) is sequence ;; d.items() is sequence ;; range(2) is sequence ;; list | map('string') is sequence ;; t is true ;; f is false ;; 1 is true ;; none is false
3 is odd ;; 4 is even ;; minus is odd ;; 6 is divisibleby 3 ;; 6 is divisibleby(4) ;; 1 in [1] ;; 1 is in [1, 2] ;; 'x' is in 'xyz' ;; 3 is eq 3 ;; 3 is equalto(4) ;; 3 is ne 4 ;; 3 is lt 4 ;; 3 is gt(4) ;; 3 is ge 3 ;; 3 is le 2 ;; 3 is lessthan 4 ;; 3 is greaterthan 2 ;; none is sameas none ;; t is sameas true ;; 1 is sameas true ;; 'ab' is lower ;; 'AB' is upper ;; 'aB' is lower ;; missing is callable ;; range is callable ;; s is callable ;; 'upper' is filter ;; 'nope' is filter ;; 'odd' is test ;; s is not string ;; not s is string ;; s is string and t ;; s is defined and s ;; x is not defined or t
range(3) ;; range(1, 7, 2) | list ;; range(3, 0, -1) | list ;; range(0) | list ;; range(5)[-1] ;; 3 in range(5) ;; dict(a=1, b='x') ;; dict({'a': 1}, b=2) ;; dict([('a', 1), ('b', 2)]) ;; namespace(a=1).a ;; namespace({'a': 5}).a ;; namespace().zz ;; joiner()() ~ 'x' ;; cycler('a', 'b').next() ;; strftime_now('%Y-%m-%d %H:%M:%S %A %j %%') ;; strftime_now('%d %b %y %I %p') ;; strftime_now('%-d/%-m') ;; strftime_now('')
[1, 2, 3] | batch(2) | list ;; [1, 2, 3] | batch(2, 'x') | list ;; [1, 2, 3, 4, 5] | slice(2) | list ;; [1, 2, 3] | slice(2, 'x') | list ;; 'hello world foo' | truncate(9) ;; 'hello world foo' | truncate(9, true) ;; 'short' | truncate(3, leeway=5) ;; 'a b  c_d e1' | wordcount ;; 'ab' | center(6) ~ '|' ;; '%s-%s' | format('a', 1) ;; '%(k)s' | format(k=2) ;; d | attr('zz') ;; s | attr('upper') is callable
"""

# One a line, with statements.
TEMPLATES = r"""
{% for i in list %}{{ loop.index }}/{{ loop.length }}:{{ i }}{{ ',' if not loop.last }}{% endfor %}
{% for i in list %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }} {% endfor %}
{% for i in list %}{{ loop.previtem }}<{{ i }}>{{ loop.nextitem }} {% endfor %}
{% for i in list %}{{ loop.cycle('odd', 'even') }} {% endfor %}
{% for i in [1, 1, 2, 2, 1] %}{{ loop.changed(i) }} {% endfor %}
{% for i in none_list %}x{% else %}nothing{% endfor %}
{% for i in list if i > 1 %}{{ loop.index }}{{ i }}{{ loop.last }}{{ loop.length }} {% else %}none{% endfor %}
{% for i in list if i > 9 %}x{% else %}none{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}
{% for k in d %}{{ k }} {% endfor %}
{% for c in u %}{{ c }}.{% endfor %}
{% for i in missing %}x{% else %}undefined is empty{% endfor %}
{% for a, (b, c) in [(1, (2, 3)), (4, (5, 6))] %}{{ a }}{{ b }}{{ c }} {% endfor %}
{% for i in range(3) %}{% for j in range(i) %}{{ i }}{{ j }}{{ loop.index }} {% endfor %}{{ loop.index }}|{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}
{% for i in range(3) %}{% for j in range(3) %}{% if j == 1 %}{% break %}{% endif %}{{ i }}{{ j }} {% endfor %}{% endfor %}
{% set y = 1 %}{% for i in list %}{% set y = y + i %}{{ y }} {% endfor %}{{ y }}
{% set ns = namespace(y=1) %}{% for i in list %}{% set ns.y = ns.y + i %}{{ ns.y }} {% endfor %}{{ ns.y }}
{% set ns = namespace() %}{% set ns.a = 1 %}{% set ns.b = ns.a + 1 %}{{ ns.a }}{{ ns.b }}{{ ns.c }}|{{ ns['a'] }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set (a, b) = (b, a) %}{{ a }}{{ b }}
{% set ns = namespace(b=0) %}{% set a, ns.b = 1, 2 %}{{ a }}{{ ns.b }}
{% set x1 = 'a', 'b' %}{{ x1 }}
{% set block %}in {{ s }}{% set inner = 1 %}{% endset %}{{ block | upper }}{{ inner }}
{% set block | upper | replace('L', '_') %}in {{ s }}{% endset %}{{ block }}
{% if t %}{% set z = 1 %}{% endif %}{{ z }}
{% if f %}a{% elif zero %}b{% elif one %}c{% else %}d{% endif %}
{% if missing %}a{% else %}b{% endif %}{% if not missing %}c{% endif %}
{% with a = 1, b = s %}{{ a }}{{ b }}{% set a = 5 %}{{ a }}{% endwith %}{{ a }}
{% with %}{% set q1 = 1 %}{{ q1 }}{% endwith %}{{ q1 }}
{% filter upper %}a{{ s }}{% endfilter %}|{% filter replace('a', 'b') | upper %}aa{% endfilter %}
{% macro m(a, b=2, c=b) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 5) }}{{ m(1, c=3) }}{{ m(b=1, a=0) }}{{ m() }}
{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, 3, k=4) }}
{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}body {{ s }}{% endcall %}
{% macro m(xs) %}{% for i in xs %}{{ caller(i, loop.index) }},{% endfor %}{% endmacro %}{% call(a, b=0) m(list) %}{{ a }}@{{ b }}{% endcall %}
{% macro fact(k) %}{{ 1 if k < 2 else k * fact(k - 1) | int }}{% endmacro %}{{ fact(6) }}
{% macro m() %}{{ later }}{% endmacro %}{% set later = 'seen' %}{{ m() }}
{% macro m() %}{% set s = 'inner' %}{{ s }}{% endmacro %}{{ m() }}{{ s }}
{% set g = namespace(k=0) %}{% macro bump() %}{% set g.k = g.k + 1 %}{% endmacro %}{{ bump() }}{{ bump() }}{{ g.k }}
{% for i in list %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}
{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}{{ m(none) }}{{ m.name }}
{% macro m() %}x{% endmacro %}{{ m() | upper }}{{ m() ~ m() }}{{ m() | length }}
{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}b{% endmacro %}{{ a() }}
{{ [1, 2, 3][1:] | map('string') | map('upper') | join }}
{% set j = joiner(', ') %}{% for w in words %}{{ j() }}{{ w }}{% endfor %}
{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.reset() }}{{ c.current }}
{% raw %}{{ x }}{% endraw %}{%- raw -%} a {%- endraw -%} b
a {#- comment -#} b {# c #}c
a  {{- 1 -}}  b  {{ 2 }}  c
{%- if t -%}  x  {%- endif -%}  y
a {%- set k = 1 %}   b{{ k }}
{{ "a\tb\\n\x41\u00e9\101\
c\q" }}
{{ 'a' 'b' "c" }}{{ "it's" }}{{ 'a"b' }}
{{ {'a': {'b': {}}} }}{{ {'a': 1,} }}{{ [1,] }}
{% print s, 1 %}
{{ s is string }}{{ s | length > 3 and n in [7] }}
{{ (1, 2) }}{{ 1, 2 }}
{{ users[0].name ~ users[0]['tags'][0] ~ users | length }}
{{ -n | abs }}{{ (-n) | abs }}{{ -n }}{{ +n }}{{ - - n }}
{{ 'x' if users | selectattr('age', 'gt', 100) else 'y' }}
{% set g = users | map(attribute='name') %}{{ g | list }}{{ g | list }}
{% set g = words | select('in', 'ab') %}{% for i in g %}{{ i }}{{ loop.length }}{% endfor %}{% for i in g %}{{ i }}{% endfor %}
{% for i in list | reverse %}{{ i }}{{ loop.last }}{% endfor %}
{% set messages = [{'role': 'user'}] + [{'role': 'tool'}] %}{{ messages | map(attribute='role') | join(',') }}
{{ s[:5] ~ s[-5:] }}{{ s[n:] }}{{ s[none:none:none] }}
{{ range(3) | map('string') | list + ['x'] }}
{{ {'role': 'a'}['role'] }}{{ {'a': 1}.a }}{{ ({'a': 1} | tojson) ~ '' }}
{{ dict(users[0], name='new') | tojson }}
{{ dict(**{'a': 1}) }}{{ dict(*[{'b': 2}]) }}
{{ 'a' in users[0] or 'name' in users[0] }}{{ users[0].on and 1 }}
{{ loop }}{{ loop is defined }}
{% generation %}a{{ s }}{% endgeneration %}b{% generation %}é{% endgeneration %}c
{% for i in list %}{{ i }}{% generation %}<{{ i }}>{% set z = 1 %}{% endgeneration %}{% endfor %}{{ z }}
{% set v %}a{% generation %}b{% endgeneration %}c{% endset %}-{{ v }}
{% if t: %}colon{% endif %}
{{ [] is sequence }}{{ '' or none }}{{ none | default('n', true) | upper }}
{{ 1 ~ 2 }}{{ '1' ~ 2 * 3 }}
{% set ns = namespace(found=false) %}{% for u1 in users if not ns.found %}{{ u1.name }}{% set ns.found = true %}{% endfor %}
{% for u1 in users %}{% if loop.previtem is defined and loop.previtem.age == u1.age %}same{% endif %}{{ u1.name }} {% endfor %}
{{ users | tojson(indent=2) }}
{{ users }}
{{ namespace(a=1) is mapping }}{{ s.upper is callable }}{{ d.pop }}|
{{ ''.join(['a', 'b']) | upper }}{{ 'a,b'.split(',') | join('+') }}
{{ "%s" | format(s) }}{{ s | string | length }}
"""

# Errors, one a line. What is refused while parsing counts as well.
ERRORS = r"""
missing.x ;; missing['x'] ;; missing + 1 ;; 1 + missing ;; missing < 1 ;; missing() ;; -missing ;; s() ;; 1() ;; none.x.y ;; d.zz.y ;; list[0].x.y
1 + 'a' ;; 'a' + 1 ;; [1] + (1,) ;; none + 1 ;; 1 / 0 ;; 1 // 0 ;; 1 % 0 ;; 1 < 'a' ;; none < 1 ;; {} < {} ;; 1 in 5 ;; 1 in 'a' ;; [1] in d ;; -'a' ;; 'a' - 'b' ;; 'a' * 'b' ;; 2.0 * 'a'
list.append(1) ;; list.pop() ;; d.update({}) ;; d.pop('a') ;; list.sort() ;; d.clear() ;; s.__class__() ;; list.extend([1]) ;; d.setdefault('q', 1)
raise_exception('no') ;; range(1000000) ;; range(1, 2, 0) ;; range('a') ;; s | nofilter ;; s is notest ;; s | map('nofilter') | list ;; list | select('notest') | list ;; list | map | list
5 | length ;; none | length ;; list | map('string') | length ;; 5 | first ;; 5 | join ;; 5 | list ;; [1, 'a'] | sort ;; [none, 1] | max ;; {'a': 1} | dictsort(by='x') ;; 'x' | round ;; 'x' | abs ;; none | abs ;; s | indent(1, 2, 3, 4) ;; missing | tojson ;; [missing] | tojson ;; d.items() | tojson ;; range | tojson ;; 2 | round(method='x') ;; list | map('upper', 1) | list ;; ['a', 1] | sum ;; 5 | items | list ;; missing | int
s.split('') ;; s.index('zz') ;; s.nomethod() ;; ''.join([1]) ;; '{'.format() ;; '{} {}'.format(1) ;; '{a}'.format(1) ;; '%d' % 'x' ;; '%s %s' % 'a' ;; '%s' % (1, 2) ;; '%q' % 1 ;; s.startswith(1) ;; s.replace('a') ;; [1].index(5) ;; (1, 2, 3)['a'].b ;; s[::0] ;; d[1:2] ;; s['a':] ;; dict(1) ;; dict([1]) ;; cycler() ;; namespace(1) ;; {[1]: 2}
{{ ;; {{ 1 } ;; {% if %}x{% endif %} ;; {% if t %} ;; {% endif %} ;; {% for %}{% endfor %} ;; {% for i in list %} ;; {% else %} ;; {% set = 1 %} ;; {% set 1 = 2 %} ;; {% set true = 1 %} ;; {% nosuchtag %} ;; {# open ;; {{ 'open }} ;; {{ (1 }} ;; {{ [1, }} ;; {{ 1 2 }} ;; {{ a b }} ;; {{ a. }} ;; {{ a| }} ;; {{ a is }} ;; {{ ] }} ;; {{ $ }} ;; {% raw %}x ;; {% macro %}{% endmacro %} ;; {% macro m(a=1, b) %}{% endmacro %} ;; {% break %} ;; {{ f(a=1, 2) }} ;; {{ f(**a, *b) }} ;; {{ }} ;; {{ () if }} ;; {% include 'x' %} ;; {% extends 'x' %} ;; {% block a %} ;; {{ 1 is odd is even }} ;; {{ '\x1' }} ;; {% for loop in list %}{% endfor %} ;; {{ not }} ;; {{ 1 not 2 }} ;; {{ 1 + }} ;; {% set a %} ;; {% call f() %} ;; {% filter upper %} ;; {{ {1 2} }} ;; {{ {'a'} }}
{% set s.x = 1 %} ;; {% set missing.x = 1 %} ;; {% for a, b in list %}{% endfor %} ;; {% set a, b = [1] %} ;; {% macro m() %}{% endmacro %}{{ m(1) }} ;; {% macro m() %}{% endmacro %}{{ m(k=1) }} ;; {% macro m() %}{{ m() }}{% endmacro %}{{ m() }} ;; {% macro m() %}x{% endmacro %}{% call m() %}y{% endcall %} ;; {% for i in 5 %}{% endfor %} ;; {% for i in none %}{% endfor %} ;; {% for i in list %}{{ loop(list) }}{% endfor %} ;; {% for i in list %}{{ loop.cycle() }}{% endfor %} ;; {{ raise_exception('a' ~ s) }}
"""


def split(lines):
    return [piece for line in lines.strip("\n").split("\n") for piece in line.split(" ;; ")]


def snippets(env):
    templates = ["{{ " + expression + " }}" for expression in split(EXPRESSIONS)]
    templates += TEMPLATES.strip("\n").replace("\\\nc\\q", "\\\0c\\q").split("\n")
    templates = [template.replace("\\\0", "\\\n") for template in templates]
    for piece in split(ERRORS):
        templates.append(piece if "{%" in piece or "{{" in piece or "{#" in piece else "{{ " + piece + " }}")
    # What white space becomes around tags of every sign.
    for left in ("", "-", "+"):
        for right in ("", "-", "+"):
            for before in ("", "a", "a\n", "a\n  ", " \n \n", "  "):
                for after in ("\n", "  \n\n b", " b"):
                    templates.append(f"{before}{{%{left} if t {right}%}}{after}{{%{left} endif {right}%}}{after}")
                    if right != "+":
                        templates.append(f"{before}{{{{{left} s {right}}}}}{after}")
                    templates.append(f"{before}{{#{left} c {right}#}}{after}")
    cases, seen = [], set()
    for template in templates:
        if template in seen:
            continue
        seen.add(template)
        result = render(env, template, CONTEXT)
        if " at 0x" in result.get("text", "") or "<bound method" in result.get("text", "") or "<built-in" in result.get("text", ""):
            raise SystemExit(f"prints an address: {template}")
        if not result.get("generations"):
            result.pop("generations", None)
        cases.append({"template": template, **result})
    return {"now": NOW, "variables": CONTEXT, "cases": cases}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--output", type=pathlib.Path, default=ROOT / "tests" / "data" / "templates")
    folder = arguments.parse_args().output
    env = environment()
    for name, content in (("chats.json", chats(env, folder)), ("snippets.json", snippets(env))):
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in content.pop("cases"))
        head = json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(head[:-1] + ', "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
