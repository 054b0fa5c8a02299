"""Public members, arguments and recipe keys by their earlier names."""

from __future__ import annotations

import dataclasses

import pytest

from dreamkit import Document, ImageDecoder, LanguageModel, ProjectorSpec, Text
from dreamkit.earlier_names import EarlierName
from dreamkit.parts.projectors.dense import Linear
from dreamkit.testing import contracts

SPEC = {"in_dim": 2, "out_dim": 3, "in_tokens": 4, "out_tokens": 4}


def test_a_method_defined_by_its_earlier_name_is_called_by_todays() -> None:
    with pytest.warns(DeprecationWarning, match=r"'\S*Old\.miniature' is now called 'tiny_config'"):

        class Old(Linear):
            @classmethod
            def miniature(cls) -> object:
                return cls.Config(bias=False)

    assert Old.tiny_config().bias is False


def test_a_method_called_by_its_earlier_name_runs() -> None:
    with pytest.warns(DeprecationWarning, match="'miniature' is now called 'tiny_config'"):
        assert Linear.miniature() == Linear.tiny_config()


@pytest.mark.parametrize("interface", [ImageDecoder, LanguageModel])
def test_every_earlier_name_leads_to_a_member(interface: type) -> None:
    earlier = [
        value for cls in interface.__mro__ for value in vars(cls).values() if isinstance(value, EarlierName)
    ]
    assert len(earlier) > 3
    assert all(hasattr(interface, each.name) for each in earlier)


def test_a_field_is_set_read_and_replaced_by_its_earlier_name() -> None:
    with pytest.warns(DeprecationWarning, match="'learn=' is now called 'train_on='"):
        text = Text("a", learn=False)  # type: ignore[call-arg]
    assert text == Text("a", train_on=False)
    with pytest.warns(DeprecationWarning, match="'learn' is now called 'train_on'"):
        assert text.learn is False  # type: ignore[attr-defined]
    with pytest.warns(DeprecationWarning):
        assert dataclasses.replace(text, learn=True).train_on  # type: ignore[call-arg]
    with pytest.warns(DeprecationWarning):
        assert ProjectorSpec(**SPEC, out_scale=2.0).out_rms == 2  # type: ignore[call-arg]


def test_an_argument_is_given_by_its_earlier_name() -> None:
    with pytest.warns(DeprecationWarning, match="'learn=' is now called 'train_on='"):
        document = Document.interleave("a", learn=False)  # type: ignore[call-arg]
    assert document == Document.interleave("a", train_on=False)


def test_the_kit_has_its_earlier_name() -> None:
    with pytest.warns(DeprecationWarning, match=r"contracts\.tiny_part"):
        assert contracts.miniature is contracts.tiny_part
    check = contracts.checks("projector")[0]
    with pytest.warns(DeprecationWarning, match="'protects' is now called 'rationale'"):
        assert check.protects == check.rationale
    with pytest.raises(AttributeError, match="has no attribute 'miniatures'"):
        contracts.miniatures  # noqa: B018


def test_super_by_an_earlier_name_leads_to_the_next_class() -> None:
    with pytest.warns(DeprecationWarning):

        class Middle(Linear):
            @classmethod
            def tiny_config(cls) -> object:
                return dataclasses.replace(super().tiny_config(), bias=False)

        class Old(Middle):
            @classmethod
            def miniature(cls) -> object:
                return super().miniature()

        class Older(Old):
            @classmethod
            def miniature(cls) -> object:
                return super().miniature()

    with pytest.warns(DeprecationWarning):
        assert Old.tiny_config() == Older.tiny_config() == Older.miniature() == Middle.tiny_config()
    assert Middle.tiny_config() != Linear.tiny_config()


def test_a_mixin_may_define_a_member_by_its_earlier_name() -> None:
    class Mixin:
        @classmethod
        def miniature(cls) -> object:
            return Linear.Config(bias=False)

    with pytest.warns(DeprecationWarning, match=r"Mixed\.miniature"):

        class Mixed(Mixin, Linear):
            pass

    assert Mixed.tiny_config() == Linear.Config(bias=False)


def test_an_attribute_is_set_by_its_earlier_name() -> None:
    class Model:
        denoising_weight = 10.0
        vm_weight = EarlierName("denoising_weight")

    model = Model()
    with pytest.warns(DeprecationWarning, match="'vm_weight' is now called 'denoising_weight'"):
        model.vm_weight = 1.0
    assert model.denoising_weight == 1


def test_the_warning_of_a_class_points_at_the_class() -> None:
    with pytest.warns(DeprecationWarning) as caught:

        class Old(Linear):
            @classmethod
            def miniature(cls) -> object:
                return cls.Config()

    assert caught[0].filename == __file__
