"""Names under which the numbers of modules are stored: not those of a library, and shared ones once."""

from torch import Tensor, nn


def rename_state(module: nn.Module, names: dict[str, str]) -> None:
    """Give the state of a wrapped library module names of our own.

    Checkpoints and released artefacts then survive a change of library.

    Args:
        module: the adapter that holds the library's module.
        names: our name to the library's, each a parameter, buffer or submodule path relative to ``module``.
    """

    def translate(state: dict[str, Tensor], prefix: str, pairs: list[tuple[str, str]]) -> None:
        for key in [k for k in state if k.startswith(prefix)]:
            rest = key[len(prefix) :]
            for old, new in pairs:
                if rest == old or rest.startswith(old + "."):
                    state[prefix + new + rest[len(old) :]] = state.pop(key)
                    break

    to_ours = [(theirs, ours) for ours, theirs in names.items()]
    to_theirs = list(names.items())

    def saving(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        translate(state, prefix, to_ours)

    def loading(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
        translate(state, prefix, to_theirs)

    module.register_state_dict_post_hook(saving)
    module.register_load_state_dict_pre_hook(loading)


def store_once(module: nn.Module, owners: dict[str, str]) -> None:
    """Leave shared parameters out of the state of a module where they stand a second time, and find them on loading.

    Args:
        module: whose submodules share parameters.
        owners: prefix of names that are left out -> prefix under which the same tensors are stored.
    """

    def saving(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
        for key in [key for key in state if key.startswith(tuple(prefix + name for name in owners))]:
            del state[key]

    def loading(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: object) -> None:
        for name, owner in owners.items():
            for key in [key for key in state if key.startswith(prefix + owner)]:
                state[prefix + name + key[len(prefix + owner) :]] = state[key]

    module.register_state_dict_post_hook(saving)
    module.register_load_state_dict_pre_hook(loading)
