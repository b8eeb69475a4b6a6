"""Rewards, in two worlds that are imported separately: on token ids inside the compiled step, and on text in Python.

`grpo_jax.rewards.tokens` is pure jnp and may be used anywhere; `grpo_jax.rewards.text` works on decoded records.
Nothing is imported here, so that maths on token ids never pulls in the text world.
"""
