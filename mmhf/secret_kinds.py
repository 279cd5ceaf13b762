"""What passwords, tokens and keys look like, so that none is published or printed."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from dataclasses import dataclass

logger = logging.getLogger(__name__)

OWN_TOKEN = "token of this environment"
_ENVIRONMENT = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "WANDB_API_KEY",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
)
_MIN_SECRET = 12


@dataclass(frozen=True)
class SecretKind:
    """A kind of secret.

    Args:
        name (`str`): What messages call it.
        words (`tuple[bytes, ...]`): Of which one is in each secret of the kind: to look for them is fast in gigabytes
            of weights.
        expression (`str`): What must stand around such a word.
    """

    name: str
    words: tuple[bytes, ...]
    expression: str

    @functools.cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """The expression, compiled when such a word is first met."""
        return re.compile(self.expression.encode())


def _kind(name: str, words: str, expression: str) -> SecretKind:
    return SecretKind(name, tuple(word.encode() for word in words.split()), expression)


_URL = r"[A-Za-z][A-Za-z0-9+.-]{1,30}://"
# What stands for a secret is none: PASSWORD, $PASSWORD, {password}, <password>, ***.
_REAL = r"(?![${<*%\[]|(?:SECRET|PASSWORD|PASS|TOKEN)(?![\w-]))"
_PARAMETERS = (
    "access_?token|auth_?token|token|api_?key|key|secret|client_secret|password|passwd|pwd|sig|signature|"
    "x-amz-signature|x-amz-security-token|x-goog-signature|awsaccesskeyid"
)
SECRET_KINDS = (
    _kind("Hugging Face token", "hf_ api_org_", r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{30,}(?![A-Za-z0-9])"),
    _kind(
        "Weights & Biases key",
        "wandb WANDB",
        r"(?i)wandb_v1_\w{20,}|wandb[^\n]{0,40}?(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])"
        r"|api\.wandb\.ai\s[^\x00]{0,60}?password\s+[0-9a-f]{40}",
    ),
    _kind("AWS key", "AKIA ASIA", r"(?<![A-Z0-9])(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"),
    _kind(
        "AWS secret key",
        "aws_secret AWS_SECRET SecretAccessKey",
        r"(?i)(?:aws_secret_access_key|SecretAccessKey)[\"'\\\s:=]{1,8}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
    ),
    _kind("Google API key", "AIza", r"(?<![\w-])AIza[\w-]{35}(?![\w-])"),
    _kind("Google access token", "ya29.", r"(?<![\w-])ya29\.[\w-]{20,}"),
    _kind("Google client secret", "GOCSPX-", r"(?<![\w-])GOCSPX-[\w-]{20,}"),
    _kind(
        "GitHub token",
        "ghp_ gho_ ghu_ ghs_ ghr_ github_pat_",
        r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,})",
    ),
    _kind(
        "GitLab token",
        "glpat- gldt- glft- glsoat- glrt- glcbt- glptt- gloas- glagent- GR1348941",
        r"(?<![A-Za-z0-9])(?:gl(?:pat|dt|ft|soat|rt|cbt|ptt|oas|agent)-|GR1348941)[\w-]{20,}",
    ),
    _kind("Anthropic key", "sk-ant-", r"(?<![\w-])sk-ant-[a-z0-9]{2,12}-[\w-]{20,}"),
    _kind(
        "OpenAI key",
        "sk-",
        r"(?<![\w-])sk-(?:(?:proj|svcacct|admin)-[\w-]{40,}|[\w-]*[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}"
        r"|[A-Za-z0-9]{48}(?![\w-]))",
    ),
    _kind(
        "Slack token",
        "xox xapp- hooks.slack.com",
        r"(?<![\w-])(?:xox[abeoprs]-(?:\d+-)+[A-Za-z0-9-]{10,}|xapp-\d-[A-Z0-9]{8,}-\d+-[a-f0-9]{20,})"
        r"|hooks\.slack\.com/services/T\w{6,}/B\w{6,}/\w{16,}",
    ),
    _kind(
        "Azure key",
        "AccountKey= SharedAccessSignature sig=",
        r"AccountKey=[A-Za-z0-9+/]{60,}={0,2}|(?i:[?&;\s\"']s[vepr]=[^\s\"']{1,300}?&sig=[A-Za-z0-9%+/]{30,}"
        r"|[?&]sig=[A-Za-z0-9%+/]{30,}[^\s\"']{0,300}?&s[vepr]=)",
    ),
    _kind("npm token", "npm_", r"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    _kind("PyPI token", "pypi-AgE", r"pypi-AgE[\w-]{60,}"),
    _kind("private key", "PRIVATE", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    _kind(
        "password in a URL",
        "://",
        _URL + r"[\w.~%+-]{0,64}:" + _REAL + r"[\w.~%!$&'()*+,;=^?#-]{1,200}@[A-Za-z0-9\[][\w.:\]-]*",
    ),
    _kind(
        "token in a URL",
        "://",
        _URL + rf"[^\s\"'<>\x00-\x1f\x7f-\xff]{{1,300}}?[?&](?i:{_PARAMETERS})=" + _REAL + r"[\w.~%+/=-]{6,}",
    ),
)


def find_secret(text: str) -> str | None:
    """The kind of the first secret in a text, `None` when it holds none."""
    content = text.encode("utf-8", errors="surrogateescape")
    if any(secret in content for secret in own_secrets()):
        return OWN_TOKEN
    for kind in SECRET_KINDS:
        if any(word in content for word in kind.words) and kind.pattern.search(content):
            return kind.name
    return None


def redact(text: str) -> str:
    """A message without the tokens and keys that it may hold, such as a server's that repeats what it was sent."""
    content = text.encode("utf-8", errors="surrogateescape")
    for secret in own_secrets():
        content = content.replace(secret, b"***")
    lowered = content.lower()
    for kind in SECRET_KINDS:
        if any(word.lower() in lowered for word in kind.words):
            content = kind.pattern.sub(b"***", content)
    return content.decode("utf-8", errors="surrogateescape")


def own_secrets() -> list[bytes]:
    """The tokens that this process has in its environment."""
    values = (os.environ.get(name, "").strip() for name in _ENVIRONMENT)
    return [value.encode() for value in values if len(value) >= _MIN_SECRET]


def find_further_secret(text: str) -> tuple[str, int] | None:
    """A secret in a text of the services that detect-secrets knows: its kind, and where it begins."""
    for name, pattern in _patterns_of_detect_secrets():
        if (match := pattern.search(text)) is not None:
            return name, match.start()
    return None


_DETECTORS = (
    ("aws", "AWSKeyDetector"),
    ("azure_storage_key", "AzureStorageKeyDetector"),
    ("discord", "DiscordBotTokenDetector"),
    ("github_token", "GitHubTokenDetector"),
    ("gitlab_token", "GitLabTokenDetector"),
    ("mailchimp", "MailchimpDetector"),
    ("npm", "NpmDetector"),
    ("openai", "OpenAIDetector"),
    ("private_key", "PrivateKeyDetector"),
    ("pypi_token", "PypiTokenDetector"),
    ("sendgrid", "SendGridDetector"),
    ("slack", "SlackDetector"),
    ("square_oauth", "SquareOAuthDetector"),
    ("stripe", "StripeDetector"),
)
"""Those whose rules mean one service's keys; others go by words such as `cl` or by chance look of 32 characters."""


@functools.cache
def _patterns_of_detect_secrets() -> list[tuple[str, re.Pattern[str]]]:
    found: list[tuple[str, re.Pattern[str]]] = []
    for module, name in _DETECTORS:
        try:
            detector = getattr(importlib.import_module(f"detect_secrets.plugins.{module}"), name)()
        except ModuleNotFoundError:
            logger.warning("detect-secrets is not installed: keys of rarer services are not looked for")
            return []
        found += [(detector.secret_type, pattern) for pattern in detector.denylist]
    return found
