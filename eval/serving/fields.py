"""The fields that a request's JSON body may hold. What is not listed here, or out of range, is refused, not ignored."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from eval.generation.sampling import encode_prompt
from eval.serving.models import Refused
from train.weights.load_model import LoadedModel

MAX_TOKENS, MAX_ROWS, MAX_ALTERNATIVES, MAX_TEXTS = 4096, 16, 20, 64
PROMPT_TOKENS = 2**15
GENERATED_TOKENS = 2**13  # of all choices together: what waits for a slow reader is bounded
CHAT_TOKENS = 512  # at most, of an answer whose max_tokens is not given


def as_list(value: Any) -> Any:
    """One text, or one list of token ids, as a list of one."""
    one = isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
    return [value] if one else value


OneOrMore = BeforeValidator(as_list)
Text = Annotated[str, Field(min_length=1)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
LENGTH = AliasChoices("max_completion_tokens", "max_tokens")  # OpenAI's new name and its old one
NoPenalty = Annotated[float, Field(ge=0, le=0)]
Tokens = Annotated[list[int], Field(min_length=1)]


class Fields(BaseModel):
    """A JSON object without other fields than these; null is the same as a field that is not there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class ModelFields(Fields):
    """What all requests share."""

    model: str | None = None


class StreamOptions(Fields):
    include_usage: bool = False


class GenerationFields(ModelFields, ABC):
    """What completions and chats share. The sampling settings after `seed` are vLLM's extensions of OpenAI's."""

    n: int = Field(1, ge=1, le=MAX_ROWS)
    max_tokens: int = Field(16, ge=1, le=MAX_TOKENS)
    stop: Annotated[list[Stop], Field(max_length=16), OneOrMore] = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int = Field(0, ge=0, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    return_token_ids: bool = False
    user: str = ""
    frequency_penalty: NoPenalty = 0.0  # from here on: only values without an effect, which clients send
    presence_penalty: NoPenalty = 0.0

    @property
    def rows(self) -> int:
        """The number of choices."""
        return self.n

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """How many of the most likely tokens to report with each token; None: no log-probabilities."""

    @abstractmethod
    def encode(self, loaded: LoadedModel) -> list[list[int]]:
        """The tokens of each prompt. Refused or UserError if this model cannot have it."""

    @property
    def settings(self) -> dict[str, Any]:
        """The named arguments of Generation."""
        return {
            "temperature": self.temperature if self.temperature > 1e-6 else 0.0,  # below, a division by it overflows
            "top_k": self.top_k or None,
            "top_p": self.top_p if self.top_p < 1 else None,
            "min_p": self.min_p or None,
            "repetition_penalty": self.repetition_penalty,
        }

    @model_validator(mode="after")
    def check_size(self) -> Self:
        if self.rows > MAX_ROWS or self.rows * self.max_tokens > GENERATED_TOKENS:
            raise Refused(
                400,
                f"{self.rows // self.n} prompts with n {self.n} and max_tokens {self.max_tokens}: give at most "
                f"{MAX_ROWS} choices and {GENERATED_TOKENS:,} tokens a request",
            )
        return self


class CompletionFields(GenerationFields):
    prompt: Annotated[list[str] | list[Tokens], Field(min_length=1), OneOrMore] = [""]
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @property
    def rows(self) -> int:
        return self.n * len(self.prompt)

    @property
    def alternatives(self) -> int | None:
        return self.logprobs

    def encode(self, loaded: LoadedModel) -> list[list[int]]:
        check_language_model(loaded)
        size = loaded.tokenizer.vocab_size
        prompts = [encode_prompt(each, loaded.tokenizer) if isinstance(each, str) else each for each in self.prompt]
        for token in (token for prompt in prompts for token in prompt):
            if not 0 <= token < size:
                raise Refused(400, f"prompt: token {token} is outside the vocabulary: give ids from 0 to {size - 1}")
        return check_length(prompts)


class TextPart(Fields):
    type: Literal["text"]
    text: str


class ChatMessage(Fields):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatFields(GenerationFields):
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int = Field(CHAT_TOKENS, ge=1, le=MAX_TOKENS, validation_alias=LENGTH)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_ALTERNATIVES)

    @property
    def alternatives(self) -> int | None:
        return self.top_logprobs if self.logprobs else None

    @model_validator(mode="after")
    def check_messages(self) -> Self:
        if self.messages[-1].role != "user":
            raise Refused(400, "messages: the last one must be the user's")
        if self.top_logprobs and not self.logprobs:
            raise Refused(400, "top_logprobs is for logprobs true: set that too")
        return self

    def encode(self, loaded: LoadedModel) -> list[list[int]]:
        if loaded.template is None:
            raise Refused(400, f"{loaded.name} has no chat template: POST /v1/completions continues a text with it")
        if not loaded.multi_turn and any(message.role == "assistant" for message in self.messages):
            raise Refused(400, f"{loaded.name} was fine-tuned on single instructions: send the last question alone")
        messages = [(message.role, message.text) for message in self.messages]
        return check_length([loaded.template.prompt(messages, loaded.tokenizer)])


class ClassifyFields(ModelFields):
    input: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS), OneOrMore]


class ExplainFields(ModelFields):
    prompt: Text


def check_language_model(loaded: LoadedModel) -> None:
    if loaded.labels:
        raise Refused(400, f"{loaded.name} is a classifier ({', '.join(loaded.labels)}): POST /v1/classify asks it")


def check_length(prompts: list[list[int]]) -> list[list[int]]:
    if (longest := max(map(len, prompts))) > PROMPT_TOKENS:
        raise Refused(400, f"the prompt has {longest:,} tokens: give at most {PROMPT_TOKENS:,}")
    return prompts
