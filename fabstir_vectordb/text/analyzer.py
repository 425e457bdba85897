"""What becomes of the words of texts before they are indexed: stems of a language, and words that are left out.

C takes texts apart and folds the words (`_native.words`). What depends on a language is here, for distinct words at
once, so that a large add calls a library once for each word and not once for each place where it stands.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any, Final

from fabstir_vectordb._native.words import UNICODE_VERSION, WORD_BYTES_MAX, words
from fabstir_vectordb.dataclass import dataclass
from fabstir_vectordb.errors import IntegrityError, InvalidConfigError, StorageError
from fabstir_vectordb.extras import install_command

__all__ = ["STOP_WORDS_MAX", "WORD_RULES", "Analyzer"]

#: Number of the rules by which words.c makes words and terms; it changes whenever equal texts get other terms.
WORD_RULES: Final = 1
#: Most stop words of a list of one's own: they are stored in each version.
STOP_WORDS_MAX: Final = 10_000

#: Terms of so many characters fit into an index, whatever they are.
_SHORT: Final = WORD_BYTES_MAX // 4

_STEMMER: Final = "PyStemmer"
_STOP_WORDS: Final = "stop-words"


@dataclass(frozen=True)
class Analyzer:
    """How words become terms of an index. Equal analyzers give equal terms, everywhere.

    Attributes:
        language: stems are of this language, for example ``"english"``; see `languages`. None: words stay as they are.
        stop_words: words that are not indexed: True for the list that the library stop-words has for the language, or
            words of your own. The library's lists are long (1,333 words for English), and no query finds a word that is
            left out; so there are none by default.

    Raises:
        InvalidConfigError: there is no stemmer or list for the language, or the extra ``text`` is not installed.

    Example:
        >>> Analyzer().stem_all(["running", "dogs"])
        ['running', 'dogs']
    """

    language: str | None = None
    stop_words: bool | tuple[str, ...] = False
    _left_out: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.language is not None and (not isinstance(self.language, str) or self.language not in languages()):
            raise InvalidConfigError(
                f"there is no stemmer for the language {self.language!r}: use one of {', '.join(languages())}",
                details={"language": self.language, "languages": list(languages())},
            )
        listed: Iterable[str]
        if isinstance(self.stop_words, bool):
            listed = _listed_stop_words(self.language) if self.stop_words else ()
        else:
            listed = _own_stop_words(self.stop_words)
        # As terms: an entry of several words never is one.
        found = [words(word) for word in listed]
        object.__setattr__(self, "_left_out", frozenset(each[0].term for each in found if len(each) == 1))

    def stem_all(self, folded: Iterable[str]) -> list[str]:
        """The terms of folded words; a word that comes twice costs twice.

        Args:
            folded: words as `Word.term` has them.

        Returns:
            A term for each word, in the same order; an empty one for a stop word.

        Raises:
            InvalidConfigError: the extra ``text`` is not installed any more.
        """
        surface = list(folded)
        stems = surface
        if self.language is not None:
            stems = _KEPT.stemmer(self.language).stemWords(surface)
        terms = stems
        # Some stemmers leave nothing of a short word; it would no longer be found. Terms of a query are short together.
        if not all(stems) or (len("".join(stems)) > _SHORT and max(map(len, stems)) > _SHORT):
            pairs = zip(stems, surface, strict=True)
            terms = [stem if 0 < len(stem) <= _SHORT else _bounded(stem) or word for stem, word in pairs]
        if self._left_out:
            terms = ["" if word in self._left_out else term for word, term in zip(surface, terms, strict=True)]
        return terms

    def to_dict(self) -> dict[str, Any]:
        """What determines the terms, for the manifest of a version: settings, and the versions of what applies them.

        Returns:
            Texts, integers and lists in maps; `from_dict` takes it.
        """
        stop_words: Any = None
        if self.stop_words is True:
            stop_words = {"name": _STOP_WORDS, "version": _version(_STOP_WORDS)}
        elif self.stop_words:
            stop_words = list(self.stop_words)
        return {
            "unicode": UNICODE_VERSION,
            "rules": WORD_RULES,
            "language": self.language,
            "stemmer": None if self.language is None else {"name": _STEMMER, "version": _version(_STEMMER)},
            "stop_words": stop_words,
        }

    @classmethod
    def from_dict(cls, stored: object, *, any_release: bool = False) -> Analyzer:
        """The analyzer of a stored version.

        Args:
            stored: what `to_dict` gave when the version was saved; it is checked.
            any_release: take other releases of Unicode, the rules and the libraries as well, for texts that are then
                indexed anew.

        Returns:
            An analyzer that gives the same terms; with `any_release` one of the same settings.

        Raises:
            IntegrityError: it has another form.
            StorageError: the terms were made by another version of Unicode, of these rules or of a library, so that
                queries would not find them; the message names both versions.
            InvalidConfigError: the extra ``text`` is not installed.
        """
        if not isinstance(stored, Mapping) or set(stored) != {"unicode", "rules", "language", "stemmer", "stop_words"}:
            raise _broken("it is not a map of its five keys")
        language, stop_words = stored["language"], stored["stop_words"]
        if language is not None and not isinstance(language, str):
            raise _broken("the language is not a text")
        if (language is None) != (stored["stemmer"] is None):
            raise _broken("a language and a stemmer belong together")
        _require("Unicode", stored["unicode"], UNICODE_VERSION, str, any_release)
        _require("rules for words", stored["rules"], WORD_RULES, int, any_release)
        if language is not None:
            _require_library(_STEMMER, stored["stemmer"], any_release)
        if isinstance(stop_words, Mapping):
            _require_library(_STOP_WORDS, stop_words, any_release)
            return cls(language, True)
        if stop_words is None:
            return cls(language)
        if not isinstance(stop_words, list) or not all(isinstance(word, str) for word in stop_words):
            raise _broken("the stop words are no list of texts")
        if not 0 < len(stop_words) <= STOP_WORDS_MAX:
            raise _broken(f"it has {len(stop_words)} stop words")
        return cls(language, tuple(stop_words))


def languages() -> tuple[str, ...]:
    """Languages that have a stemmer.

    Returns:
        Their English names, sorted.

    Raises:
        InvalidConfigError: the extra ``text`` is not installed.
    """
    return tuple(sorted(_stemmers().algorithms()))


class _Kept(threading.local):
    """The stemmers of a thread: one may be used by one thread at a time, and making it takes longer than a stem."""

    def __init__(self) -> None:
        self._by_language: dict[str, Any] = {}

    def stemmer(self, language: str) -> Any:
        found = self._by_language.get(language)
        if found is None:
            # Without its cache, which would be of use only if words came twice.
            found = self._by_language[language] = _stemmers().Stemmer(language, 0)
        return found


_KEPT: Final = _Kept()


def _stemmers() -> Any:
    try:
        import Stemmer
    except ImportError:
        raise _missing(_STEMMER) from None
    return Stemmer


def _listed_stop_words(language: str | None) -> Iterable[str]:
    if language is None:
        raise InvalidConfigError(
            "stop_words=True needs a language: name it, or give the words themselves",
            details={"argument": "stop_words"},
        )
    try:
        import stop_words
    except ImportError:
        raise _missing(_STOP_WORDS) from None
    if language not in stop_words.AVAILABLE_LANGUAGES:
        raise InvalidConfigError(
            f"stop-words has no list for the language {language!r}: give the words themselves",
            details={"language": language, "languages": sorted(stop_words.AVAILABLE_LANGUAGES)},
        )
    listed: list[str] = stop_words.get_stop_words(language)
    return listed


def _own_stop_words(listed: object) -> tuple[str, ...]:
    if not isinstance(listed, tuple) or not all(isinstance(word, str) for word in listed):
        raise InvalidConfigError(
            f"stop_words must be a bool or a tuple of strings, got {type(listed).__name__}",
            details={"argument": "stop_words"},
        )
    if len(listed) > STOP_WORDS_MAX:
        raise InvalidConfigError(
            f"there are {len(listed)} stop words, the most are {STOP_WORDS_MAX}",
            details={"argument": "stop_words", "expected": STOP_WORDS_MAX, "actual": len(listed)},
        )
    return listed


def _bounded(term: str) -> str:
    """The term, cut to the bytes that an index has room for: a few stemmers add a letter."""
    return term.encode()[:WORD_BYTES_MAX].decode(errors="ignore")


def _version(package: str) -> str:
    from importlib import metadata  # imports email, which most sessions do not need

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise _missing(package) from None


def _require_library(name: str, stored: object, any_release: bool) -> None:
    if not isinstance(stored, Mapping) or set(stored) != {"name", "version"} or stored["name"] != name:
        raise _broken(f"it does not name {name}")
    _require(name, stored["version"], _version(name), str, any_release)


def _require(what: str, stored: object, here: object, kind: type, any_release: bool) -> None:
    """Raises unless what a version was made by is what runs here."""
    if type(stored) is not kind:
        raise _broken(f"the version of {what} is no {kind.__name__}")
    if stored != here and not any_release:
        raise StorageError(
            f"the texts of this version were indexed with {what} {stored}, and {what} {here} is in use: "
            f"open it where {what} is {stored}, or load it with rebuild_text=True, which indexes the texts anew",
            details={"analysis": what, "stored": stored, "here": here},
        )


def _broken(problem: str) -> IntegrityError:
    return IntegrityError(f"the description of the text analysis is damaged: {problem}")


def _missing(package: str) -> InvalidConfigError:
    return InvalidConfigError(
        f"stems and lists of stop words need {package}: {install_command('text')}", details={"extra": "text"}
    )
