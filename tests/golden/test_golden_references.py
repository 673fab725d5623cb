"""Agreement with the scores that published tools computed, with their own code, on one common problem.

Where a tool departs from its paper, or looks where an adversary cannot, a literal oracle in this file reproduces its
numbers from ours, so that the difference is known to be that and nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from memberscope.attacks.base_score import base_offline
from memberscope.attacks.calibration import AttackR, DifficultyMidpointPhi
from memberscope.attacks.comparison import Comparison
from memberscope.attacks.lira import (
    LiraOfflineOneSided,
    LiraOnlinePerRecord,
    LiraOnlinePooled,
    Worlds,
    fit_worlds,
    log_likelihood_ratio,
    two_sided,
    upper_z,
)
from memberscope.attacks.population import AttackP
from memberscope.attacks.rmia import offline_ratio, online_ratio, pairwise_score
from memberscope.evidence import Evidence
from memberscope.reference_signals import log_probability
from memberscope.signals import logit_scaled_confidence

pytestmark = pytest.mark.shared

Floats = NDArray[np.float64]
N_OUT = 8


class Published:
    """The common problem, and what each tool answered."""

    def __init__(self, folder: Path) -> None:
        inputs = np.load(folder / "inputs_balanced.npz")
        self.scores: dict[str, Floats] = {}
        for name in ("lira_balanced.npz", "rmia_balanced.npz"):
            with np.load(folder / name) as file:
                self.scores |= {key: file[key] for key in file.files}
        self.member = inputs["keep"][0]
        logits, population = inputs["logits"].transpose(0, 2, 1, 3), inputs["logits_pop"].transpose(0, 2, 1, 3)
        self.evidence = {
            queries: Evidence(
                logits[0, :queries],
                inputs["y"].astype(np.int64),
                queries=("none", "flip")[:queries],
                reference_logits=logits[2:, :queries],
                reference_membership=inputs["keep"][2:],
                population_logits=population[0, :queries],
                population_labels=inputs["y_pop"].astype(np.int64),
                population_reference_logits=population[2:, :queries],
            )
            for queries in (1, 2)
        }
        self.comparison = {queries: Comparison.of(evidence) for queries, evidence in self.evidence.items()}

    def __getitem__(self, name: str) -> Floats:
        return self.scores[name]


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> Published:
    return Published(shared_dir / "reference")


def ranks(scores: Floats) -> NDArray[np.int64]:
    return np.unique(scores, return_inverse=True)[1]


def agreement(ours: Floats, theirs: Floats) -> float:
    """Spearman's rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(ours, theirs).statistic)


def same(ours: Floats, theirs: Floats, tolerance: float) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_phi(published: Published) -> None:
    """Log(p_y + 1e-45) - log(sum of the others + 1e-45) of the released code."""
    phi = published["phi"].transpose(0, 2, 1)
    same(published.comparison[2].phi(), phi[0], 4e-15)
    references = published.evidence[2].references
    for record in (0, 7, 1999):
        same(references.phi().values[:, record].T, phi[2:][references.order[record], :, record], 4e-15)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize(
    ("centre", "online", "offline"),
    [
        ("median", "carlini_online_fv0", "carlini_offline_fv0"),
        ("median", "tfp_lira_both_fv0_median", "tfp_lira_out_fv0_median"),
        ("mean", "tfp_lira_both_fv0_mean", "tfp_lira_out_fv0_mean"),
    ],
)
def test_lira_per_record(published: Published, queries: int, centre: Any, online: str, offline: str) -> None:
    comparison = published.comparison[queries]
    ours = LiraOnlinePerRecord(centre=centre).score(published.evidence[queries])
    same(ours, published[f"A{queries}_{online}"], 1e-12)
    worlds = fit_worlds(comparison, variance="per-record", centre=centre)
    same(two_sided(comparison.phi(), worlds), published[f"A{queries}_{offline}"], 1e-12)
    same(comparison.phi().mean(axis=0), published[f"A{queries}_carlini_global"], 4e-15)
    if queries == 2 and centre == "median":
        same(two_sided(comparison.phi(), worlds), published["pm24_lira_offline_fvFalse_2aug"], 1e-12)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("A1_leakpro_lira_online_fixed", 1e-12),
        ("A1_sacro_online-carlini_fv0_col1", 1e-9),  # adds 1e-16 to standard deviations, clips probabilities
        ("A1_pg_lira_online", 5e-6),  # adds 1e-8 to standard deviations
        ("pm24_lira_online_fvFalse_2aug", 1e-12),
    ],
)
def test_other_tools_with_the_same_lira(published: Published, name: str, tolerance: float) -> None:
    queries, centre = (2, "median") if name.startswith("pm24") else (1, "mean")
    ours = LiraOnlinePerRecord(centre=centre).score(published.evidence[queries])  # type: ignore[arg-type]
    same(ours, published[name], tolerance)


def test_lira_with_the_spread_of_all_raw_values(published: Published) -> None:
    """What three tools call fixed variance: `global` here. Ours is pooled within records."""
    comparison = published.comparison[1]
    worlds = fit_worlds(comparison, variance="global")
    for name in (
        "A1_leakpro_lira_online_carlini",
        "A1_leakpro_lira_online_individual_carlini",
        "A1_sacro_online-carlini_fv1_col1",
    ):
        same(log_likelihood_ratio(comparison.phi(), worlds), published[name], 1e-10)
    same(two_sided(comparison.phi(), worlds), published["A1_sacro_offline-carlini_fv1_col1"], 1e-10)
    own = fit_worlds(comparison, variance="per-record")
    same(two_sided(comparison.phi(), own), published["A1_sacro_offline-carlini_fv0_col1"], 1e-9)


@pytest.mark.parametrize("queries", [1, 2])
def test_the_released_fixed_variance_takes_the_in_spread_for_both_worlds(published: Published, queries: int) -> None:
    comparison = published.comparison[queries]
    phi, keep = published["phi"][2:, :, :queries], published.evidence[1].reference_membership
    assert keep is not None
    worlds = fit_worlds(comparison, centre="median")
    typo, out = (np.full_like(worlds.var_in, np.var(phi[mask])) for mask in (keep, ~keep))
    literal = log_likelihood_ratio(comparison.phi(), Worlds(worlds.mean_in, typo, worlds.mean_out, typo))
    same(literal, published[f"A{queries}_carlini_online_fv1"], 1e-12)
    if queries == 2:
        same(literal, published["pm24_lira_online_fvTrue_2aug"], 1e-12)
    offline = two_sided(comparison.phi(), Worlds(worlds.mean_in, typo, worlds.mean_out, out))
    same(offline, published[f"A{queries}_carlini_offline_fv1"], 1e-12)
    if queries == 2:  # the typo there offline too
        literal = two_sided(comparison.phi(), Worlds(worlds.mean_in, typo, worlds.mean_out, typo))
        same(literal, published["pm24_lira_offline_fvTrue_2aug"], 1e-12)


@pytest.mark.parametrize("queries", [1, 2])
@pytest.mark.parametrize("centre", ["mean", "median"])
def test_tensorflow_privacy_pools_residuals_as_we_do_but_divides_by_n(
    published: Published, queries: int, centre: Any
) -> None:
    comparison = published.comparison[queries]
    worlds = fit_worlds(comparison, centre=centre)
    phi, keep = published["phi"][2:, :, :queries].transpose(0, 2, 1), published.evidence[1].reference_membership
    assert keep is not None
    variances = [
        np.var((phi - mean).transpose(0, 2, 1)[mask])
        for mask, mean in ((keep, worlds.mean_in), (~keep, worlds.mean_out))
    ]
    same_shape = np.ones_like(worlds.mean_in)
    literal = Worlds(worlds.mean_in, variances[0] * same_shape, worlds.mean_out, variances[1] * same_shape)
    for score, name in ((log_likelihood_ratio, "both"), (two_sided, "out")):
        same(score(comparison.phi(), literal), published[f"A{queries}_tfp_lira_{name}_fv1_{centre}"], 1e-10)
    if centre == "mean":  # ours is unbiased: wider by n / (n - 1), up to rounding the same order of records
        ours = LiraOnlinePooled().score(published.evidence[queries])
        assert agreement(ours, published[f"A{queries}_tfp_lira_both_fv1_mean"]) > 0.999999
        if queries == 1:
            np.testing.assert_allclose(worlds.var_in, variances[0] * N_OUT / (N_OUT - 1), rtol=1e-12)


def test_lira_offline_is_three_formulas_in_the_wild(published: Published) -> None:
    """One-sided tools rank as our z-score does; the two-sided ones do not, and find less."""
    comparison = published.comparison[1]
    for variance, names in (
        ("per-record", ("A1_leakpro_lira_offline_fixed", "A1_sacro_offline_fv0_col1")),
        (
            "global",
            (
                "A1_leakpro_lira_offline_carlini",
                "A1_leakpro_lira_offline_individual_carlini",
                "A1_sacro_offline_fv1_col1",
            ),
        ),
    ):
        z = upper_z(comparison.phi(), fit_worlds(comparison, variance=variance))  # type: ignore[arg-type]
        for name in names:
            assert agreement(z, published[name]) > 0.9999999, name
    np.testing.assert_array_equal(
        ranks(LiraOfflineOneSided().score(published.evidence[1])), ranks(published["A1_leakpro_lira_offline_carlini"])
    )
    released = published["A1_pg_lira_offline_globalstd"]
    literal = two_sided(comparison.phi(), fit_worlds(comparison, variance="global"))
    np.testing.assert_array_equal(ranks(literal), ranks(released))


def test_difficulty_calibration_on_phi(published: Published) -> None:
    """tf-privacy's offset: of medians there, of means here."""
    comparison = published.comparison[1]
    worlds = fit_worlds(comparison, centre="median")
    phi = comparison.phi()
    same((phi - 0.5 * (worlds.mean_in + worlds.mean_out))[0], published["A1_tfp_offset_both"], 1e-14)
    same((phi - worlds.mean_out)[0], published["A1_tfp_offset_out"], 1e-14)
    same((phi - worlds.mean_in)[0], published["A1_tfp_offset_in"], 1e-14)
    two = fit_worlds(published.comparison[2], centre="median")
    phi = published.comparison[2].phi()
    same((phi - 0.5 * (two.mean_in + two.mean_out)).mean(axis=0), published["A2_tfp_offset_both"], 1e-14)
    same((phi - two.mean_out).mean(axis=0), published["A2_tfp_offset_out"], 1e-14)
    same((phi - two.mean_in).mean(axis=0), published["A2_tfp_offset_in"], 1e-14)
    ours = DifficultyMidpointPhi().score(published.evidence[1])
    assert agreement(ours, published["A1_tfp_offset_both"]) > 0.99


def test_base_and_rmia_signals(published: Published) -> None:
    comparison = published.comparison[1]
    same(online_ratio(comparison, 2.0)[0], published["leakpro_base_online_T2"], 4e-15)
    same(base_offline(comparison, 0.33, 2.0), published["leakpro_base_offline_T2_s0.33"], 4e-15)
    probability = np.exp(log_probability(published.comparison[2].phi(2.0)))
    same(probability.T, published["pm24_signal_softmaxT2_target"], 1e-15)


@pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
def test_privacy_meter_2_takes_the_largest_half_of_the_population_models(published: Published, a: float) -> None:
    """Its score is ours, its p(z) too large: non-members get .62 and more where .5 would be right."""
    evidence, comparison = published.evidence[1], published.comparison[1]
    ratio = offline_ratio(comparison, a)[0]
    target = log_probability(logit_scaled_confidence(evidence.population_logits[0], evidence.population_labels))
    models = np.exp(log_probability(evidence.population_references.phi().values[0]))
    means = {"theirs": np.sort(models, axis=1)[:, -N_OUT:].mean(axis=1), "right": models.mean(axis=1)}
    scores = {
        name: pairwise_score(ratio, target - np.log(0.5 * ((1 + a) * mean + 1 - a))) for name, mean in means.items()
    }
    same(scores["theirs"], published[f"pm2_rmia_offline_a{a:.1f}"], 1e-12)
    if a == 0.3:
        same(scores["theirs"], published["pm2_module_rmia_a0.3"], 1e-12)
        same(scores["theirs"], published["pg_rmia_offline_a0.3"], 1e-12)
        assert scores["theirs"][~published.member].mean() > 0.61
        assert abs(scores["right"][~published.member].mean() - 0.5) < 0.02


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_rmia_papers_code_takes_the_targets_own_nonmembers(published: Published, mode: str) -> None:
    """z = the evaluation negatives, each compared with all others; means over models are trimmed."""
    from scipy.stats import trim_mean

    comparison, out = published.comparison[1], ~published.member
    models = np.exp(log_probability(comparison.references.phi(2.0).values[0]))
    if mode == "online":
        pbar = trim_mean(models, 0.2, axis=1)
    else:
        pbar = 0.65 * trim_mean(models[:, N_OUT:], 0.2, axis=1) + 0.35
    ratio = log_probability(comparison.phi(2.0)[0]) - np.log(pbar)
    score, z = pairwise_score(ratio, ratio[out], 2.0), out.sum()
    literal = np.where(out, (score * z + 1) / (z - 1), score)
    same(literal, published[f"pm24_rmia_softmaxT2_{mode}_1aug"], 5e-8)  # float32 there
    ours = online_ratio(comparison, 2.0)[0] if mode == "online" else offline_ratio(comparison, 0.3, 2.0)[0]
    assert agreement(ours, score) > 0.98


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_leakpro_takes_members_into_the_population(published: Published, mode: str) -> None:
    """z = random audited records, members among them; offline its z are divided by the mean over all models."""
    comparison, z = published.comparison[1], published["leakpro_z_indices"].astype(int)
    assert 0.4 < published.member[z].mean() < 0.6
    models = np.exp(log_probability(comparison.references.phi(2.0).values[0]))
    p = np.exp(log_probability(comparison.phi(2.0)[0]))
    everyone, out = models.mean(axis=1), models[:, N_OUT:].mean(axis=1)
    pbar_x = everyone if mode == "online" else 0.5 * (1.33 * out + 0.67)
    pbar_z = everyone if mode == "online" else 0.5 * (1.33 * everyone + 0.67)
    literal = pairwise_score(np.log(p / (pbar_x + 1e-6)), np.log(p / (pbar_z + 1e-6))[z], 2.0)
    same(literal, published[f"leakpro_rmia_{mode}_T2_gamma2"], 1e-12)


def test_attack_r_of_the_rmia_paper_interpolates_between_losses(published: Published) -> None:
    comparison = published.comparison[1]
    loss = -log_probability(comparison.phi()[0])
    out = -log_probability(comparison.references.phi().values[0][:, N_OUT:])
    ends = np.sort(np.column_stack([np.zeros(len(out)), out, np.full(len(out), 1000.0)]), axis=1)
    literal = [-np.interp(x, row, np.linspace(0, 1, N_OUT + 2)) for x, row in zip(loss, ends, strict=True)]
    same(np.array(literal), published["pm24_attackR"], 1e-11)
    steps = np.floor(AttackR().score(published.evidence[1]) * (N_OUT + 1))
    np.testing.assert_array_equal(steps, (out > loss[:, None]).sum(axis=1))


def test_attack_p_of_the_rmia_paper_takes_the_targets_own_nonmembers(published: Published) -> None:
    phi = published.comparison[1].phi()[0]
    own = np.sort(phi[~published.member])
    literal = np.searchsorted(own, phi, side="right") / len(own) - 1
    same(literal, published["pm24_attackP"], 1e-7)  # float32 there
    evidence = published.evidence[1]
    ours = np.floor(AttackP().score(evidence) * 1001)
    population = logit_scaled_confidence(evidence.population_logits[0], evidence.population_labels)
    np.testing.assert_array_equal(ours, (population < phi[:, None]).sum(axis=1))
    assert len(np.unique(AttackP().score(evidence))) == 2000
