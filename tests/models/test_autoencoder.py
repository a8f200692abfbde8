from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.autoencoder import Autoencoder
from models.params import Activation, AutoencoderParams, Output
from models.records import BLOCK


def test_layers_are_as_requested_and_the_output_is_as_wide_as_the_input() -> None:
    network = Autoencoder(5, AutoencoderParams(layers=(4, 2, 4)))
    shapes = [tuple(weight.shape) for weight in network.parameters() if weight.ndim == 2]
    assert shapes == [(4, 5), (2, 4), (4, 2), (5, 4)]
    assert network(torch.ones(3, 5)).shape == (3, 5)


def test_the_loss_is_the_mean_squared_error_against_the_target() -> None:
    network = Autoencoder(3, AutoencoderParams(layers=(2,)))
    x, target = torch.randn(7, 3), torch.randn(7, 3)
    assert torch.isclose(network.loss(x, target, None), ((network(x) - target) ** 2).mean())


def test_a_sigmoid_output_stays_within_0_and_1_in_both_modes() -> None:
    network, x = Autoencoder(11, AutoencoderParams(layers=(5, 3), output="sigmoid")), 100 * torch.randn(20, 11)
    plain = Autoencoder(11, AutoencoderParams(layers=(5, 3)))
    plain.load_state_dict(network.state_dict())
    assert torch.allclose(network.eval()(x), torch.sigmoid(plain(x)), atol=1e-6)
    assert torch.allclose(network.train()(x), network.eval()(x), atol=1e-6)


def test_the_activity_penalty_is_the_mean_l1_norm_of_the_narrowest_layers_activations() -> None:
    params = AutoencoderParams(layers=(4, 2, 5), activation="tanh", output="sigmoid", activity_penalty=0.3)
    network, x, target = Autoencoder(3, params), torch.randn(7, 3), torch.randn(7, 3)
    weights = [p.detach().numpy() for p in network.parameters()]
    hidden = np.tanh(np.tanh(x.numpy() @ weights[0].T + weights[1]) @ weights[2].T + weights[3])
    expected = ((network(x) - target) ** 2).mean().item() + 0.3 * np.abs(hidden).sum(axis=1).mean()
    assert np.isclose(network.loss(x, target, None).item(), expected)


def test_params_take_a_list_from_a_file_but_no_text_and_no_empty_network() -> None:
    assert AutoencoderParams.model_validate({"layers": [20, 8, 20]}).layers == (20, 8, 20)
    for bad in (["20"], [], [0], [2.0]):
        with pytest.raises(ValidationError):
            AutoencoderParams.model_validate({"layers": bad})


@pytest.mark.parametrize("width", [1, 2, 5, 11, 16, 30, 33, 60, 121])
@pytest.mark.slow
def test_in_eval_mode_a_row_has_the_same_bits_at_every_place_in_the_block(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, order = torch.randn(BLOCK, width, generator=generator), torch.randperm(BLOCK, generator=generator)
    for activation, output in product(get_args(Activation), get_args(Output)):
        network = Autoencoder(width, AutoencoderParams(layers=(9, 3, 7), activation=activation, output=output)).eval()
        with torch.inference_mode():
            assert torch.equal(network(x)[order], network(x[order]))


def test_eval_mode_gives_the_same_output_as_training_mode_up_to_rounding() -> None:
    network, x = Autoencoder(11, AutoencoderParams(layers=(5, 3))), torch.randn(20, 11)
    assert torch.allclose(network.train()(x), network.eval()(x), atol=1e-6)
