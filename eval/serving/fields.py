"""The fields that a request's JSON body may hold. What is not listed here, or out of range, is refused, not ignored."""

from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from eval.generation.sampling import encode_prompt
from eval.serving.models import Refused
from prepare.common.cli import UserError
from train.weights.load_model import LoadedModel

MAX_TOKENS, MAX_ALTERNATIVES = 4096, 20
LENGTH = AliasChoices("max_completion_tokens", "max_tokens")  # of a chat, OpenAI's new name and its old one


def as_list(value: Any) -> Any:
    """One text as a list of one."""
    return [value] if isinstance(value, str) else value


def single_prompt(value: Any) -> Any:
    """A prompt, or the one in a list, as some clients send it."""
    if not isinstance(value, list) or not value or isinstance(value[0], int):
        return value
    if len(value) > 1:
        raise Refused(400, "prompt: give one; requests that arrive together are generated together")
    return value[0]


OneOrMore = BeforeValidator(as_list)
Text = Annotated[str, Field(max_length=2**17)]
NonemptyText = Annotated[Text, Field(min_length=1)]
Tokens = Annotated[list[int], Field(min_length=1, max_length=2**15)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
NoPenalty = Annotated[float, Field(ge=0, le=0)]


class Fields(BaseModel):
    """A JSON object without other fields than these; null is the same as a field that is not there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class GenerationFields(Fields):
    """What completions and chats share. The sampling settings after `seed` are vLLM's extensions of OpenAI's."""

    model: str | None = None
    n: int = Field(1, ge=1, le=16)
    max_tokens: int = Field(16, ge=1, le=MAX_TOKENS)
    stop: Annotated[list[Stop], Field(max_length=16), OneOrMore] = []
    stream: bool = False
    stream_options: dict[Literal["include_usage"], bool] = {}
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    alternatives: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, alias="logprobs")  # None: no log-probabilities
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int = Field(0, ge=0, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    return_token_ids: bool = False
    user: str = ""
    frequency_penalty: NoPenalty = 0.0  # from here on: only values without an effect, which clients send
    presence_penalty: NoPenalty = 0.0


class CompletionFields(GenerationFields):
    prompt: Annotated[Text | Tokens, BeforeValidator(single_prompt)] = ""

    def encode(self, loaded: LoadedModel) -> list[int]:
        """The tokens of the prompt. UserError if this model cannot continue it."""
        check_language_model(loaded)
        if isinstance(self.prompt, str):
            return encode_prompt(self.prompt, loaded.tokenizer)
        size = loaded.tokenizer.vocab_size
        if outside := [token for token in self.prompt if not 0 <= token < size]:
            raise UserError(f"prompt: token {outside[0]} is outside the vocabulary: give ids from 0 to {size - 1}")
        return self.prompt


class ChatMessage(Fields):
    role: Literal["system", "user", "assistant"]
    content: Text


class ChatFields(GenerationFields):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int = Field(512, ge=1, le=MAX_TOKENS, validation_alias=LENGTH)
    logprobs: bool = False
    alternatives: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, alias="top_logprobs")

    @model_validator(mode="after")
    def check_chat(self) -> Self:
        if self.messages[-1].role != "user":
            raise Refused(400, "messages: the last one must be the user's")
        if self.alternatives and not self.logprobs:
            raise Refused(400, "top_logprobs is for logprobs true: set that too")
        self.alternatives = (self.alternatives or 0) if self.logprobs else None
        return self

    def encode(self, loaded: LoadedModel) -> list[int]:
        """The tokens of the conversation, by the model's template. UserError if it has none for these messages."""
        if loaded.template is None:
            raise UserError(f"{loaded.name} has no chat template: POST /v1/completions continues a text with it")
        if not loaded.multi_turn and any(message.role == "assistant" for message in self.messages):
            raise UserError(f"{loaded.name} was fine-tuned on single instructions: send the last question alone")
        messages = [(message.role, message.content) for message in self.messages]
        return loaded.template.prompt(messages, loaded.tokenizer)


class ClassifyFields(Fields):
    model: str | None = None
    input: Annotated[list[NonemptyText], Field(min_length=1, max_length=64), OneOrMore]


class ExplainFields(Fields):
    model: str | None = None
    prompt: NonemptyText


def check_language_model(loaded: LoadedModel) -> None:
    if loaded.labels:
        raise UserError(f"{loaded.name} is a classifier ({', '.join(loaded.labels)}): POST /v1/classify asks it")
