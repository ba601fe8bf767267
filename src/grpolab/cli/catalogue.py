"""The catalogue of `grpolab list`: every choice with formula, source and settings.

Everything printed is read from the classes: the formula is a docstring's first sentence, the
source its "Source:" line, the settings the fields. What all choices of a group share stands once,
at its head.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import MISSING as UNSET
from dataclasses import Field, dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Any

from grpolab.component import (
    MISSING,
    MODULES,
    NESTED,
    ConfigError,
    _bounds_text,
    describe_type,
    nearest,
    registry,
    settings_of,
    type_hints,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")
USAGE = """usage: grpolab list [group] [name] [json=true]

  grpolab list            every group
  grpolab list clip       one group: each choice with formula, source and settings
  grpolab list clip ppo   one choice in full (also: grpolab list clip=ppo, grpolab list ppo)
  json=true               the same for machines

groups: {groups}"""
HOW_TO_USE = {"mask": "clip.masks=[{0}]", "design": "-m design={0}"}
"""Overrides that choose an entry, where `group=name` alone does not."""
NESTED_ABOUT = {"mask": "token masks on top of any policy loss: a list, in clip.masks"}
WIDEST = 160
"""Columns beyond which lines no longer grow; what is piped gets as many."""


@dataclass(frozen=True)
class Setting:
    """One setting as it is printed."""

    key: str
    default: Any
    type: str
    help: str

    @property
    def assigned(self) -> str:
        """key=default, as YAML writes it."""
        return f"{self.key}={as_yaml(self.default)}"


@dataclass(frozen=True)
class Entry:
    """One choice of a group."""

    group: str
    name: str
    cls: type

    @property
    def paragraphs(self) -> list[str]:
        """The docstring's."""
        return cleandoc(self.cls.__doc__ or "").split("\n\n")

    @property
    def formula(self) -> str:
        """The docstring's first sentence, as one line."""
        return " ".join(self.paragraphs[0].split())

    @property
    def sources(self) -> list[str]:
        """arXiv ids of the "Source:" sentence, or its first words where it names none; without
        such a sentence the ids that stand behind "arXiv"."""
        text = " ".join(" ".join(self.paragraphs).split())
        found = re.search(r"\bSource: (.*?)(?:\. |\.?$)", text)
        if found is None:
            return list(dict.fromkeys(re.findall(rf"arXiv ({ARXIV.pattern})", text)))
        return ARXIV.findall(found[1]) or [re.split(r"[,;:(]|'s ", found[1])[0].strip()]

    @property
    def settings(self) -> dict[str, Setting]:
        """By name, in order of declaration."""
        hints = type_hints(self.cls)
        return {k: read_setting(k, f, hints[k]) for k, f in settings_of(self.cls).items()}

    @property
    def usage(self) -> str:
        """The override that chooses it."""
        return HOW_TO_USE.get(self.group, f"{self.group}={{0}}").format(self.name)


def read_setting(key: str, item: Field[Any], hint: Any) -> Setting:
    """A dataclass field as a setting."""
    default = item.default if item.default_factory is UNSET else item.default_factory()
    kind = describe_type(hint) + _bounds_text(item.metadata)
    return Setting(key, default, kind, str(item.metadata["help"]))


def entries(group: str) -> list[Entry]:
    """A group's choices by name."""
    return [Entry(group, name, cls) for name, cls in sorted(registry(group).items())]


def common(found: Sequence[Entry]) -> dict[str, Setting]:
    """The settings that three or more choices of a group have and no choice with settings lacks,
    with one default; worded as most of them word it."""
    each = [e.settings for e in found if e.settings]
    if len(each) < 3:
        return {}
    shared = {}
    for key, mine in each[0].items():
        others = [s[key] for s in each if key in s]
        if len(others) == len(each) and all(o.default == mine.default for o in others):
            words = Counter(o.help for o in others)
            shared[key] = max(others, key=lambda o: words[o.help])
    return shared


def as_yaml(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, float) and math.isinf(value):
        return ".inf" if value > 0 else "-.inf"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


# -- the command -----------------------------------------------------------------------------------


def list_components(arguments: Sequence[str]) -> int:
    """Prints the catalogue, a group of it, or one choice in full."""
    if any(a in ("-h", "--help") for a in arguments):
        print(USAGE.format(groups=", ".join(MODULES)))
        return 0
    machine = False
    words: list[str] = []
    for word in arguments:
        key, separator, value = word.partition("=")
        if key == "json" and separator:
            if value not in ("true", "false"):
                raise ConfigError(f"json: {value!r} given; allowed: true, false.")
            machine = value == "true"
        elif word.startswith("-"):
            raise ConfigError(f"{word}: unknown flag; allowed: --help, json=true.")
        else:
            words += [key, value] if separator else [word]
    chosen, full = pick(words)
    if machine:
        print(json.dumps(as_json(chosen), indent=1, ensure_ascii=False))
    else:
        show(chosen, full)
    return 0


def pick(words: Sequence[str]) -> tuple[list[Entry], bool]:
    """The entries that are asked for, and whether they are wanted in full."""
    if len(words) > 2:
        raise ConfigError(f"{' '.join(words[2:])}: too much; allowed: grpolab list [group] [name].")
    if not words:
        return [e for group in MODULES for e in entries(group)], False
    if words[0] in MODULES:
        found = entries(words[0])
        if len(words) == 1:
            return found, False
        one = [e for e in found if e.name == words[1]]
        if not one:
            known = [e.name for e in found]
            raise ConfigError(
                f"{words[0]}: unknown {words[0]} {words[1]!r}; allowed: {', '.join(known)}"
                f"{nearest(words[1], known) or '.'}"
            )
        return one, True
    everything = [e for group in MODULES for e in entries(group)]
    named = [e for e in everything if e.name == words[0]]
    if named and len(words) == 1:
        return named, True
    known = [*MODULES, *(e.name for e in everything if len(words) == 1)]
    close = nearest(words[0], known) or "."
    raise ConfigError(f"unknown group {words[0]!r}; allowed: {', '.join(MODULES)}{close}")


def as_json(chosen: Iterable[Entry]) -> dict[str, list[dict[str, Any]]]:
    """{group: [choice]}, with every setting; infinities as YAML writes them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for e in chosen:
        settings = [
            {"name": s.key, "default": plain(s.default), "type": s.type, "help": s.help}
            for s in e.settings.values()
        ]
        found.setdefault(e.group, []).append(
            {
                "name": e.name,
                "default": e.name == default_choice(e.group),
                "formula": e.formula,
                "sources": e.sources,
                "use": e.usage,
                "settings": settings,
                "doc": cleandoc(e.cls.__doc__ or ""),
                "class": f"{e.cls.__module__}.{e.cls.__qualname__}",
            }
        )
    return found


def plain(value: Any) -> Any:
    """What JSON can hold."""
    return as_yaml(value) if isinstance(value, float) and math.isinf(value) else value


def default_choice(group: str) -> str:
    """The choice that train.yaml makes; none for a nested group."""
    from grpolab.sweep.explain import default_choice as of

    return "" if group in NESTED else of(group)


def about(group: str) -> str:
    """What a group is for: its comment in train.yaml's defaults list."""
    from grpolab.sweep.explain import conf_dir

    root = (conf_dir() / "train.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^\s+- {group}: \S+\s+# (.+)$", root, re.MULTILINE)
    return NESTED_ABOUT.get(group) or (found[1] if found else "")


# -- for people ------------------------------------------------------------------------------------


def console() -> Console:
    """As wide as the terminal; colours only on one."""
    from rich.console import Console

    columns = shutil.get_terminal_size((WIDEST, 0)).columns  # COLUMNS where it is set
    return Console(width=min(columns, WIDEST), highlight=False, markup=False, emoji=False)


def show(chosen: Sequence[Entry], full: bool) -> None:
    """Prints entries in full, or their groups as tables."""
    screen = console()
    with screen.capture() as captured:
        for place, part in enumerate([[e] for e in chosen] if full else by_group(chosen)):
            if place:
                screen.print()
            if full:
                show_entry(screen, part[0])
            else:
                show_group(screen, part)
        if not full and len(by_group(chosen)) > 1:
            screen.print("\nOne in full: grpolab list <group> <name>. For machines: json=true.")
    # a table fills its last column with spaces, which whoever reads the pipe would have to strip
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def by_group(chosen: Iterable[Entry]) -> list[list[Entry]]:
    """The entries of each group, in the order of the groups."""
    found: dict[str, list[Entry]] = {}
    for e in chosen:
        found.setdefault(e.group, []).append(e)
    return list(found.values())


def show_group(screen: Console, found: Sequence[Entry]) -> None:
    """A group: what its choices share, then each with formula, source and its own settings."""
    from rich.text import Text

    group = found[0].group
    screen.print(Text.assemble((group, "bold"), f"  {about(group)}" if about(group) else ""))
    use = HOW_TO_USE.get(group, f"{group}={{0}}").format("<name>")
    screen.print(Text(f"  grpolab train {use}", "dim"))
    shared = common(found)
    if shared:
        without = [e.name for e in found if not e.settings]
        screen.print(Text(f"  all{' but ' + ', '.join(without) if without else ''} take"))
        heads = [(Text(f"    {s.assigned}", "cyan"), Text(s.help)) for s in shared.values()]
        screen.print(grid(screen.width, heads))
    screen.print()
    chosen = default_choice(group)
    rows = []
    for e in found:
        own = ", ".join(s.assigned for k, s in e.settings.items() if k not in shared)
        text = Text.assemble(e.formula, (f"\n{own}" if own else "", "cyan"))
        marked = Text(f"  {e.name}{'*' if e.name == chosen else ''}", "bold")
        rows.append((marked, text, Text("\n".join(e.sources), "dim")))
    screen.print(grid(screen.width, rows))
    if chosen:
        screen.print(Text("  * the default", "dim"))


def show_entry(screen: Console, e: Entry) -> None:
    """One choice in full: its specification, and each setting with type, default and help."""
    from rich.text import Text

    screen.print(Text(f"{e.group}={e.name}" if e.group not in NESTED else f"{e.group} {e.name}",
                      "bold"))  # fmt: skip
    for paragraph in e.paragraphs:
        screen.print()
        screen.print(Text("\n".join(reflow(paragraph, min(screen.width, 100)))))
    shown = list(e.settings.values())
    screen.print(Text("\nsettings", "bold"))
    rows = [
        (Text(f"  {s.assigned}", "cyan"), Text.assemble(s.help, (f" ({s.type})", "dim")))
        for s in shown
    ]
    screen.print(grid(screen.width, rows) if rows else "  none")
    screen.print()
    for place, words in enumerate(examples(e)):
        start = "        " if place else "use     "
        screen.print(Text(f"{start}grpolab train {words}"), soft_wrap=True)
    links = [f"https://arxiv.org/abs/{s}" if ARXIV.fullmatch(s) else s for s in e.sources]
    if links:
        screen.print(Text(f"source  {', '.join(links)}"), soft_wrap=True)
    screen.print(Text(f"class   {e.cls.__module__}.{e.cls.__qualname__}"), soft_wrap=True)


def examples(e: Entry) -> list[str]:
    """Overrides that choose an entry, the last with its first setting that has a value."""
    plainly = re.compile(r"\w[\w.+-]*")  # what no shell and no grammar reads otherwise
    valued = [s for s in e.settings.values() if s.default not in (None, MISSING)]
    first = next((s for s in valued if plainly.fullmatch(as_yaml(s.default))), None)
    if first is None:
        return [e.usage]
    if e.group not in NESTED:
        return [f"{e.usage} {e.group}.{first.assigned}"]
    mapping = f"{{name: {e.name}, {first.key}: {as_yaml(first.default)}}}"
    return [e.usage, f"'{HOW_TO_USE[e.group].format(mapping)}'"]


def reflow(paragraph: str, width: int) -> list[str]:
    """A paragraph wrapped to a width; one with indented lines or a list stays as it is."""
    lines = paragraph.splitlines()
    if any(line[:1] in " -*" for line in lines):
        return lines
    return textwrap.wrap(" ".join(lines), width, break_long_words=False, break_on_hyphens=False)


def grid(width: int, rows: Sequence[Sequence[Text]]) -> Table:
    """Columns side by side in a terminal's width: the second wraps to what the others leave."""
    from rich.table import Table

    needed = [max(len(line) for row in rows for line in row[i].plain.splitlines() or [""])
              for i in range(len(rows[0]))]  # fmt: skip
    given = [min(n, limit) for n, limit in zip(needed, (40, 100, 24), strict=False)]
    given[1] = max(10, min(given[1], width - sum(given) + given[1] - 2 * (len(given) - 1)))
    table = Table.grid(padding=(0, 2), pad_edge=False)
    for columns in given:
        table.add_column(width=columns, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
