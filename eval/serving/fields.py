"""The fields that a request's JSON body may hold. What is not listed here, or out of range, is refused, not ignored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOKENS, MAX_ROWS_A_REQUEST, MAX_ALTERNATIVES = 4096, 16, 20
Stop = Annotated[str, Field(min_length=1, max_length=200)]
NoPenalty = Annotated[float | None, Field(ge=0, le=0)]
Tokens = Annotated[list[int], Field(min_length=1)]


class Fields(BaseModel):
    """A JSON object without other fields than these; null is the same as a field that is not there."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Fields):
    include_usage: bool | None = None


class GenerationFields(Fields):
    """What completions and chats share. The sampling settings after `seed` are vLLM's extensions of OpenAI's."""

    model: str | None = None
    n: int | None = Field(1, ge=1, le=MAX_ROWS_A_REQUEST)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(1.0, ge=0, le=100)
    top_p: float | None = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    top_k: int | None = Field(None, ge=0, lt=2**31)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(1.0, ge=0.01, le=100)
    return_token_ids: bool | None = False
    user: str | None = None
    frequency_penalty: NoPenalty = None  # from here on: only values without an effect, which clients send
    presence_penalty: NoPenalty = None


class CompletionFields(GenerationFields):
    prompt: str | Tokens | Annotated[list[str] | list[Tokens], Field(min_length=1)] = ""
    max_tokens: int | None = Field(16, ge=1, le=MAX_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)

    @property
    def prompts(self) -> list[str | list[int]]:
        one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if one else self.prompt  # ty: ignore[invalid-explicit-return]


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
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
