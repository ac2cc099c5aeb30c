from __future__ import annotations

import pytest

import optuna_stitch as st
from optuna_stitch.utils.errors import UnknownNetworkError


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNetworkError, match=r"'resnet51'.*resnet50"):
        st.load_parent("resnet51")


def test_arguments_that_a_network_does_not_take() -> None:
    with pytest.raises(UnknownNetworkError, match="test_resnet cannot be made"):
        st.load_parent("test_resnet", model_args={"no_such_argument": 1})
    with pytest.raises(
        UnknownNetworkError, match=r"test_vit cannot be made with .*'img_size': -5"
    ):
        st.load_parent("test_vit", model_args={"img_size": -5})
