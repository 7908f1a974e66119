"""`hythe stack …` and `hythe source …`: where stacks come from, and who may say that something was pushed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from cyclopts import App, Parameter

from hythe_cli import shown
from hythe_cli.asking import HomeFolder, actor, running_hythe, webhooks_url
from hythe_cli.deployments import history_table
from hythe_cli.shown import AsJson
from hythe_events.deploy import Grant, GrantStack, ListDeployments, ListStacks
from hythe_events.errors import Misconfigured, NotFound, Refused
from hythe_events.git import ListRepositories, SaveRepository
from hythe_events.language import Value
from hythe_events.log import Done, Rows
from hythe_events.webhooks import CreateSource, Provider, SourceMade, SwitchSource

app = App(name="stack", help="Where stacks come from, and what each runs.")
sources = App(name="source", help="Webhook sources: who may tell Hythe that something was pushed.")

SecretFile = Annotated[
    Path | None, Parameter(help="A file that holds it; secrets never stand on a command line.")
]


@app.command
async def add(
    name: str,
    url: str,
    *,
    branch: str = "main",
    path: str = "",
    compose_file: str | None = None,
    user: str | None = None,
    token_file: SecretFile = None,
    ssh_key_file: SecretFile = None,
    known_host: str | None = None,
    source: str | None = None,
    webhook: Literal["github", "generic", "none"] = "github",
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """Say where a stack comes from; said again, it replaces what was said before.

    Unless told otherwise this also makes a webhook source of the stack's name and prints what to paste into the forge.

    Parameters
    ----------
    name
        The stack's name: lower-case letters, digits, - and _.
    url
        The repository: https://…, ssh://… or git@host:path.
    branch
        A push to this branch brings the stack up.
    path
        The folder in the repository that holds the compose file.
    compose_file
        The compose file in that folder. [default: hythe.yaml says, or the first of the usual names]
    user
        The user name that goes with the token, where the forge wants a certain one.
    known_host
        The line of known_hosts that the SSH server's key must match.
    source
        Listen to this webhook source, which is there already, instead of making one.
    webhook
        The kind of source to make; none: pushes are not heard, deploy by command.
    """
    token, ssh_key = _secret(token_file), _secret(ssh_key_file, keep_newline=True)
    _check_url(url)
    async with running_hythe(home) as bus:
        made: SourceMade | None = None
        listens_to = source
        if source is None and webhook != "none":
            listens_to = name
            known = await bus.ask(ListRepositories(stack=name), Rows, actor=actor())
            heard_already = known.rows and known.rows[0].get("source") == name
            if not heard_already:
                made = await bus.ask(CreateSource(source=name, provider=webhook), SourceMade, actor=actor())
        saved = await bus.ask(
            SaveRepository(
                stack=name,
                url=url,
                branch=branch,
                path=path,
                compose_file=compose_file,
                source=listens_to,
                user=user,
                token=token,
                ssh_key=ssh_key,
                known_host=known_host,
            ),
            Done,
            actor=actor(),
        )
    if json:
        shown.show_json(
            {
                "stack": name,
                "url": url,
                "branch": branch,
                "version": saved.version,
                "webhook": _webhook(made, home),
            }
        )
        return shown.GOOD
    shown.say(f"{name}: {'saved' if saved.version == 1 else f'saved, version {saved.version}'}")
    if made is not None:
        _show_secret(made, home)
    shown.say(f"Bring it up now with: ./hythe deploy {name} --follow")
    return shown.GOOD


@app.command(name="list")
async def list_(*, json: AsJson = False, home: HomeFolder = None) -> int:
    """The stacks: where each comes from and what it runs."""
    async with running_hythe(home) as bus:
        repositories = await bus.ask(ListRepositories(), Rows, actor=actor())
        stacks = await bus.ask(ListStacks(), Rows, actor=actor())
    running = {row["stack"]: row for row in stacks.rows}
    known = {row["stack"]: row for row in repositories.rows}
    names = sorted({*running, *known})
    if json:
        shown.show_json(
            [{"stack": name, "repository": known.get(name), "runs": running.get(name)} for name in names]
        )
        return shown.GOOD
    if not names:
        shown.say("No stacks yet: add one with ./hythe stack add NAME URL")
        return shown.GOOD
    shown.table(
        ("stack", "runs", "commit", "last", "branch", "repository"),
        [
            (
                name,
                shown.short(running.get(name, {}).get("live_deployment")),
                shown.short(running.get(name, {}).get("live_commit")),
                running.get(name, {}).get("last_outcome") or running.get(name, {}).get("last_phase"),
                known.get(name, {}).get("branch"),
                known.get(name, {}).get("url"),
            )
            for name in names
        ],
    )
    return shown.GOOD


@app.command
async def show(name: str, *, json: AsJson = False, home: HomeFolder = None) -> int:
    """One stack: where it comes from, what it runs, and its latest deployments."""
    async with running_hythe(home) as bus:
        repositories = await bus.ask(ListRepositories(stack=name), Rows, actor=actor())
        stacks = await bus.ask(ListStacks(stack=name), Rows, actor=actor())
        deployments = await bus.ask(ListDeployments(stack=name, limit=10), Rows, actor=actor())
    if not repositories.rows and not stacks.rows and not deployments.rows:
        raise NotFound(f"there is no stack {name}; ./hythe stack list shows them")
    repository = next(iter(repositories.rows), None)
    runs = next(iter(stacks.rows), None)
    if json:
        shown.show_json(
            {"stack": name, "repository": repository, "runs": runs, "deployments": deployments.rows}
        )
        return shown.GOOD
    for title, row in (("comes from", repository), ("runs", runs)):
        shown.say(title, style="bold")
        for key, value in (row or {"": "nothing"}).items():
            if value not in (None, "", [], {}):
                shown.say(f"  {key:<18} {shown.one_harmless_line(str(value))}")
    shown.say("deployments", style="bold")
    history_table(deployments.rows)
    return shown.GOOD


@app.command
async def grant(name: str, *grants: Grant, json: AsJson = False, home: HomeFolder = None) -> int:
    """Say what a stack's compose file is allowed beyond the ordinary: the whole list; none takes all back."""
    async with running_hythe(home) as bus:
        done = await bus.ask(GrantStack(stack=name, grants=grants), Done, actor=actor())
    return _done(done, json, f"{name} is allowed {', '.join(grants) or 'nothing beyond the ordinary'}")


@sources.command(name="add")
async def add_source(
    name: str,
    *,
    provider: Provider = "github",
    secret_file: SecretFile = None,
    json: AsJson = False,
    home: HomeFolder = None,
) -> int:
    """Make a webhook source; the URL and the secret to paste into the forge are shown once.

    Several stacks may listen to one source (stack add --source NAME).

    Parameters
    ----------
    secret_file
        A file with a secret of your own, of 16 letters or more. [default: a strong one is made]
    """
    asked = CreateSource(source=name, provider=provider, secret=_secret(secret_file))
    async with running_hythe(home) as bus:
        made = await bus.ask(asked, SourceMade, actor=actor())
    if json:
        shown.show_json(_webhook(made, home))
    else:
        _show_secret(made, home)
    return shown.GOOD


@sources.command
async def on(name: str, *, json: AsJson = False, home: HomeFolder = None) -> int:
    """Take deliveries of this source."""
    return await _switch(name, home, json, on=True)


@sources.command
async def off(name: str, *, json: AsJson = False, home: HomeFolder = None) -> int:
    """Refuse deliveries of this source, until it is switched on again."""
    return await _switch(name, home, json, on=False)


async def _switch(name: str, home: Path | None, json: bool, *, on: bool) -> int:
    async with running_hythe(home) as bus:
        done = await bus.ask(SwitchSource(source=name, on=on), Done, actor=actor())
    return _done(done, json, f"{name} is {'on' if on else 'off'}")


def _done(done: Value, json: bool, sentence: str) -> int:
    if json:
        shown.show_json(done.model_dump(mode="json"))
    else:
        shown.say(sentence)
    return shown.GOOD


def _webhook(made: SourceMade | None, home: Path | None) -> dict[str, str] | None:
    if made is None:
        return None
    return {"url": webhooks_url(home) + made.path, "secret": made.secret, "provider": made.provider}


def _show_secret(made: SourceMade, home: Path | None) -> None:
    told = _webhook(made, home)
    assert told is not None
    shown.say()
    shown.say(
        f"  Paste into the webhook settings of the forge ({made.provider}, content type application/json):"
    )
    shown.say(f"    URL     {told['url']}")
    shown.say(f"    secret  {told['secret']}")
    shown.say("  The secret is shown this once. The forge must be able to reach the URL.", style="dim")
    shown.say()


def _check_url(url: str) -> None:
    if urlsplit(url).password is not None:
        raise Refused(
            "a password in a URL ends up in logs: give the token with --token-file instead", field="url"
        )


def _secret(file: Path | None, *, keep_newline: bool = False) -> str | None:
    if file is None:
        return None
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Misconfigured(f"{file} cannot be read: {error}") from error
    return text if keep_newline else text.strip()
