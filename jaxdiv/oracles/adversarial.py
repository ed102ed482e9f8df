"""The adversarial oracle: the gradient at worst-case inputs.

    grad_theta L(theta; attack(x)),   attack(x) ~ argmax over a neighborhood of x of L(theta; .)

References:
    Madry et al. (2018), Towards Deep Learning Models Resistant to Adversarial Attacks, eq. (2.1).
"""

import jax

from jaxdiv.adversarial import Attack
from jaxdiv.core.types import Batch, Key, LossFn, Params, Scalar, State
from jaxdiv.oracles.oracle import Evaluation, Oracle


def adversarial(base: Oracle, attack: Attack) -> Oracle:
    """Perturbs ``batch["inputs"]`` through the whole loss, then asks the base oracle.

    Args:
        base: The oracle to ask at the perturbed inputs.
        attack: ``(loss_of_inputs, inputs, key) -> inputs``, e.g. `jaxdiv.adversarial.sign_gradient`.

    Returns:
        An oracle that costs the attack's gradients besides those of `base`. The loss state advances once,
        from the evaluation at the perturbed inputs; the attack sees it and leaves no trace in it.

    Example:
        >>> from jaxdiv import adversarial, oracles
        >>> oracle = oracles.adversarial(oracles.plain(), adversarial.sign_gradient(0.1))
    """

    def value_and_grad(
        loss_fn: LossFn,
        params: Params,
        oracle_state: State,
        loss_state: State,
        batch: Batch,
        key: Key,
    ) -> Evaluation:
        def loss_of_inputs(inputs: object) -> Scalar:
            return loss_fn(params, loss_state, {**batch, "inputs": inputs}, key)[0]

        # The loss keeps its own key, so that attack and training meet the same dropout and the same pairs.
        inputs = attack(loss_of_inputs, batch["inputs"], jax.random.fold_in(key, 0x5EED))
        return base.value_and_grad(
            loss_fn, params, oracle_state, loss_state, {**batch, "inputs": inputs}, key
        )

    return Oracle(base.init, value_and_grad)
