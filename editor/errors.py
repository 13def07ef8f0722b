"""Everything the editor raises on purpose.

EditorError
├── ModelLoadError             ModelNotFoundError · NotCausalLMError · QuantisedModelError ·
│                              ShardedModelError
├── UnknownArchitectureError   the feed-forward output matrix was not found, or blocks do not run in parts
├── TokenizerMismatchError     the tokenizer cannot say where the subject ends, or does not fit the model
├── RequestError               SubjectNotInPromptError · EmptyTargetError · TargetTooLongError ·
│                              PromptTooLongError · SubjectConflictError
├── MomentsError               MomentsMismatchError · SingularMomentsError
├── StateError                 StateMismatchError · CorruptStateError
├── NonFiniteError             a loss, a state or a weight change is not finite
├── NothingToExportError       a checkpoint changes nothing, so there is no adapter of it
├── DataError                  DataNotFoundError · DataFormatError · BadRecordError
├── MissingLibraryError        an optional package is needed and not installed
├── MethodError                UnknownMethodError · NotTrainedError
└── TransientEditorError       OutOfMemoryError: the same call may succeed later
"""

from __future__ import annotations


class EditorError(Exception):
    """Base of all errors raised by this package.

    Keyword arguments become attributes, so that callers read data instead of parsing the message.
    """

    def __init__(self, message: str, **data: object) -> None:
        super().__init__(message)
        self.data = data

    def __getattr__(self, name: str) -> object:
        """Read a datum given at construction."""
        data = self.__dict__.get("data", {})
        if name in data:
            return data[name]
        raise AttributeError(name)


class TransientEditorError(EditorError):
    """The same call may succeed later."""


class OutOfMemoryError(TransientEditorError):
    """Memory ran out: where a model is loaded, or even at the smallest batch."""


class ModelLoadError(EditorError):
    """A model could not be loaded for editing."""


class ModelNotFoundError(ModelLoadError):
    """Neither a folder with a model nor a hub name that can be reached."""


class NotCausalLMError(ModelLoadError):
    """The model does not predict the next token from the ones before."""


class QuantisedModelError(ModelLoadError):
    """The weights are quantised and cannot take an additive change."""


class ShardedModelError(ModelLoadError):
    """The weights are spread over devices, or on none, and cannot be changed in place."""


class UnknownArchitectureError(EditorError):
    """No feed-forward output matrix was found in the blocks of the model, or it cannot be run in parts."""


class TokenizerMismatchError(EditorError):
    """The tokenizer has no offsets, or speaks of tokens that the model does not have."""


class RequestError(EditorError):
    """An edit request that cannot be carried out as written."""


class SubjectNotInPromptError(RequestError):
    """A template does not hold exactly one place for the subject."""


class EmptyTargetError(RequestError):
    """The target text is empty or only white space."""


class TargetTooLongError(RequestError):
    """The target has more tokens than one state is asked to carry."""


class PromptTooLongError(RequestError):
    """A prompt with its target has more tokens than the model has positions."""


class SubjectConflictError(RequestError):
    """A subject is asked for twice, or is edited and live at the same time."""


class MomentsError(EditorError):
    """The second moments cannot be used."""


class MomentsMismatchError(MomentsError):
    """The second moments belong to another model or other layers."""


class SingularMomentsError(MomentsError):
    """The normal matrix is not positive definite."""


class StateError(EditorError):
    """A stored subject state or delta cannot be used."""


class StateMismatchError(StateError):
    """A stored state or delta was made for other layers or shapes."""


class CorruptStateError(StateError):
    """Stored bytes do not hold what they should."""


class NonFiniteError(EditorError):
    """A loss, a state or a weight change is not finite; nothing was written."""


class NothingToExportError(EditorError):
    """A checkpoint changes nothing, so there is no adapter of it."""


class DataError(EditorError):
    """Records of an evaluation cannot be used."""


class DataNotFoundError(DataError):
    """Neither a file nor a data set that can be reached."""


class DataFormatError(DataError):
    """A file holds no usable records, or fewer than asked for."""


class BadRecordError(DataError):
    """One record cannot be used; the message goes on after "the record"."""


class MissingLibraryError(EditorError):
    """An optional package is needed and not installed."""


class MethodError(EditorError):
    """An editing method cannot be used."""


class UnknownMethodError(MethodError):
    """No method has that name."""


class NotTrainedError(MethodError):
    """A method that learns to edit got too few records to learn from."""
