"""Print what lets a shell complete commands, options and recipes: vqstack completion bash|zsh|fish.

bash: ``eval "$(vqstack completion bash)"`` in ~/.bashrc; zsh: the same with zsh in ~/.zshrc; fish: ``vqstack completion
fish > ~/.config/fish/completions/vqstack.fish``. The script holds the names as they are today: make it again after an
update.
"""

from importlib import import_module

from vqstack.commands import COMMANDS
from vqstack.config import options_of
from vqstack.errors import InputError
from vqstack.recipes import shipped
from vqstack.terminal import say

BASH = """_vqstack() {{
    local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"
    elif [ "$before" = --config ]; then words="{recipes}"
    else case "${{COMP_WORDS[1]}}" in
{cases}
    esac; fi
    case "$word" in -*) ;; *) [ "$COMP_CWORD" -eq 1 ] || [ "$before" = --config ] || words="" ;; esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ -n "$words" ] || COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _vqstack vqstack"""
ZSH = "autoload -U +X bashcompinit && bashcompinit\n"


def main(arguments: list[str]) -> None:
    if arguments[:1] in (["-h"], ["--help"]):
        say(__doc__)
    elif len(arguments) != 1 or arguments[0] not in ("bash", "zsh", "fish"):
        raise InputError(f"completion: {' '.join(arguments) or 'no shell'}: name one of bash, zsh, fish")
    else:
        say(_fish() if arguments[0] == "fish" else ZSH * (arguments[0] == "zsh") + _bash())


def every_option() -> dict[str, list[str]]:
    """Command -> its options."""
    modules = {name: import_module(f"vqstack.commands.{name}") for name in COMMANDS}
    return {
        name: [*(option for option, _ in options_of(module.Command) if option.startswith("--")), "--help"]
        for name, module in modules.items()
        if hasattr(module, "Command")
    }


def _bash() -> str:
    cases = "\n".join(f'        {name}) words="{" ".join(found)}" ;;' for name, found in every_option().items())
    return BASH.format(commands=" ".join(COMMANDS), recipes=" ".join(shipped()), cases=cases)


def _fish() -> str:
    first = "not __fish_seen_subcommand_from " + " ".join(COMMANDS)
    lines = [f"complete -c vqstack -f -n '{first}' -a {name} -d '{about.summary}'" for name, about in COMMANDS.items()]
    for name, found in every_option().items():
        when = f"__fish_seen_subcommand_from {name}"
        lines += [f"complete -c vqstack -n '{when}' -l {option[2:]}" for option in found if option != "--config"]
        if "--config" in found:
            lines.append(f"complete -c vqstack -n '{when}' -l config -x -a '{' '.join(shipped())}'")
    return "\n".join(lines)
