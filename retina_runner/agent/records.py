"""Records: `dataclass`, `field`, `asdict` and `replace` as the standard library's, as far as the agent uses them.

That one generates and compiles the source of half a dozen methods for each class, and imports `inspect` for it: of the 49 ms
of CPU that an agent took to start, 11. Here all classes share their methods, which look at the fields' names instead; a
record is made somewhat more slowly. Type checkers are shown the original.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple

_FIELDS = "__record_fields__"
_NONE = object()


class _Field:
    def __init__(self, default: Any = _NONE, default_factory: Any = _NONE, repr: bool = True):
        self.default, self.default_factory, self.repr = default, default_factory, repr


def _dataclass(cls: Optional[type] = None, *, frozen: bool = False) -> Any:
    return (lambda cls: _made(cls, frozen)) if cls is None else _made(cls, frozen)


def _made(cls: Any, frozen: bool) -> Any:
    fields: Dict[str, _Field] = {}
    for name in getattr(cls, "__annotations__", {}):
        given = cls.__dict__.get(name, _NONE)
        fields[name] = found = given if isinstance(given, _Field) else _Field(given)
        if found.default is not _NONE:
            setattr(cls, name, found.default)
        elif given is not _NONE:
            delattr(cls, name)
    setattr(cls, _FIELDS, tuple(fields))
    methods: Dict[str, Any] = {
        "__init__": _init_of(cls.__name__, fields),
        "__repr__": _repr_of(fields),
        "__eq__": _equal,
    }
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(cls, name, method)
    if frozen:
        cls.__hash__, cls.__setattr__, cls.__delattr__ = _hash, _refuse, _refuse
    elif cls.__dict__.get("__hash__") is None:
        cls.__hash__ = None
    return cls


def _init_of(title: str, fields: Dict[str, _Field]) -> Callable[..., None]:
    names = tuple(fields)
    values = {name: field.default for name, field in fields.items() if field.default is not _NONE}
    makers = {name: field.default_factory for name, field in fields.items() if field.default_factory is not _NONE}

    def __init__(self: Any, *given: Any, **named: Any) -> None:
        if len(given) > len(names):
            raise TypeError(f"{title}() takes {len(names)} values, and {len(given)} were given")
        mine: Dict[str, Any] = dict(zip(names, given))
        for name in named:
            if name in mine or name not in fields:
                raise TypeError(f"{title}() got {'two values for' if name in mine else 'an unknown'} {name!r}")
        mine.update(named)
        for name in names:
            if name not in mine:
                if name not in values and name not in makers:
                    raise TypeError(f"{title}() lacks {name!r}")
                mine[name] = values[name] if name in values else makers[name]()
        self.__dict__.update(mine)

    return __init__


def _repr_of(fields: Dict[str, _Field]) -> Callable[[Any], str]:
    shown = tuple(name for name, field in fields.items() if field.repr)

    def __repr__(self: Any) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    return __repr__


def _values(record: Any) -> Tuple[Any, ...]:
    return tuple(getattr(record, name) for name in getattr(record, _FIELDS))


def _equal(self: Any, other: Any) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse(self: Any, name: str, *value: Any) -> None:
    raise AttributeError(f"cannot change {name!r} of a {type(self).__name__}")


def _asdict(record: Any) -> Any:
    """Records within as objects too; other values are the same ones, not copies."""
    if hasattr(type(record), _FIELDS):
        return {name: _asdict(getattr(record, name)) for name in getattr(record, _FIELDS)}
    if isinstance(record, (list, tuple)):
        return type(record)(map(_asdict, record))
    if isinstance(record, dict):
        return {key: _asdict(value) for key, value in record.items()}
    return record


def _replace(record: Any, **changes: Any) -> Any:
    return type(record)(**{**dict(zip(getattr(record, _FIELDS), _values(record))), **changes})


if TYPE_CHECKING:
    from dataclasses import asdict as asdict
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    asdict, dataclass, field, replace = _asdict, _dataclass, _Field, _replace
