"""What all sequence models are made of."""

import jax
import jax.numpy as jnp
import numpy as np

from icrl_jax.models.layers import linear


def test_products_of_half_precision_are_summed_in_float32():
    """Each is a sum of 512 ones, which in bfloat16 would stay at 256, to which one more adds nothing."""
    x, w = jnp.ones((512, 512), jnp.bfloat16), jnp.ones((512, 512))
    y, (dx, dw) = jax.jit(lambda x, w: (linear(x, w), jax.vjp(linear, x, w)[1](x)))(x, w)
    assert (y.dtype, dx.dtype, dw.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    for product in y, dx, dw:
        np.testing.assert_array_equal(product.astype(jnp.float32), 512)
