"""Faults put into the package on purpose: each one must turn a test red.

Each mutant changes one place of one file in a copy of the package and runs the tests named beside
it, compiled kernels as plain Python. A mutant that survives means a test that can't fail.
"""

import multiprocessing
import os
import shutil
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

import mutant_child
import pytest

import dasknmf

PACKAGE = Path(dasknmf.__file__).parent
TESTS = Path(__file__).parent


class Mutant(NamedTuple):
    """What goes wrong: ``old`` in ``file`` becomes ``new``; ``tests`` must notice."""

    fault: str
    file: str
    old: str
    new: str
    tests: str


KERNELS, LOOPS = "numerics/kernels/__init__.py", "numerics/kernels/compiled.py"
ROWS = "numerics/kernels/nnls.py"
SOLVERS, FITS, PIECES = "test_solvers.py", "test_fits.py", "test_kernels.py"
FIRST = "test_first_read.py"
TOLD = "test_told_loss.py"
SCARCE = "test_scarce_sample.py"
EXCHANGE = "test_exchange.py"
TWIN = f"{SOLVERS}::test_update_equals_its_scalar_twin"
VALUE = f"{SOLVERS}::test_value_of_the_loss_equals_its_scalar_twin"
KKT = f"{SOLVERS}::test_exact_rows_satisfy_kkt_even_when_ill_conditioned"
RESUMED = (
    "test_resume.py::test_stopped_at_every_boundary_and_resumed_it_has_the_same_bits[penalties]"
)
WAVES = "test_few_passes.py::test_waves_are_block_coordinate_descent"
DESCENT = f"{FITS}::test_the_objective_never_rises_and_is_that_of_the_returned_pair"
LAYOUT = f"{FITS}::test_one_result_for_every_layout[als-2-uneven slabs-float64]"

MUTANTS = [
    Mutant(
        "Gram matrix of rows in the wrong order", KERNELS,
        "result += tall.T @ tall", "result += tall.T @ tall[::-1]",
        f"{PIECES}::test_gram_of_float32_is_summed_in_float64",
    ),
    Mutant(
        "Gram matrix summed in float32", KERNELS,
        "_of_thread.wide = np.empty(size)", "_of_thread.wide = np.empty(size, np.float32)",
        f"{PIECES}::test_gram_of_float32_is_summed_in_float64",
    ),
    Mutant(
        "slab sums added in float32", "numerics/terms.py",
        'wide = np.float64 if parts[0].dtype.kind == "f" else parts[0].dtype',
        "wide = parts[0].dtype",
        f"{PIECES}::test_sums_of_float32_slabs_are_added_in_float64",
    ),
    Mutant(
        "last slab lost in a sum", "numerics/terms.py",
        "for part in parts[2:]:\n        total += part",
        "for part in parts[2:-1]:\n        total += part",
        f"{PIECES}::test_adding_keeps_what_belongs_to_the_loss_and_adds_the_rest",
    ),
    Mutant(
        "ninth slab lost in the merge tree", "numerics/planning.py",
        "for i in range(0, count, fan_in)]", "for i in range(0, max(count - 1, 1), fan_in)]",
        f"{PIECES}::test_the_merge_tree_reaches_every_slab_once_in_order",
    ),
    Mutant(
        "scale of the factor not put back", KERNELS, "    product *= unit\n", "",
        f"{PIECES}::test_products_equal_their_scalar_twin",
    ),
    Mutant(
        "misaligned arrays left misaligned", KERNELS,
        'np.require(array, requirements=["C", "A"]).view()', "np.ascontiguousarray(array).view()",
        f"{PIECES}::test_every_array_is_aligned_before_it_is_used",
    ),
    Mutant(
        "sparse residual without the model's own norm", KERNELS,
        "return max(squares - 2.0 * float(dot) + model, 0.0)",
        "return max(squares - 2.0 * float(dot), 0.0)",
        f"{SOLVERS}::test_squared_residual_equals_the_sum_over_entries",
    ),
    Mutant(
        "only the last tile counts", KERNELS,
        "neg += weights.T @ rows[start:stop]", "neg = weights.T @ rows[start:stop]",
        f"{PIECES}::test_tiles_change_nothing",
    ),
    Mutant(
        "wrong power of the unit", KERNELS,
        "factor = unit ** (beta - 1.0)", "factor = unit**beta", TWIN,
    ),
    Mutant(
        "coordinate steps too long", ROWS,
        "inverse = 1.0 / diagonal", "inverse = 1.5 / diagonal", TWIN,
    ),
    Mutant(
        "descent uses a stale residual", ROWS,
        "g[t] -= factor * w[b, t]", "g[t] -= factor * w[b, t] if b >= a else 0.0", TWIN,
    ),
    Mutant(
        "rows that raise the objective are taken", "ensemble.py",
        "objective > self.current + slack", "objective > 1e9 * self.current + slack",
        "test_few_passes.py::test_rows_that_would_raise_the_objective_are_not_taken",
    ),
    Mutant(
        "a checkpoint comes only after the first pass", "passes.py",
        " and not self.keeper.between_waves", "",
        "test_few_passes.py::test_no_wave_waits_before_the_short_factor_moves",
    ),
    Mutant(
        "a resumed pass leaves a wave out", "passes.py",
        "        while state.wave < len(self.waves):",
        "        state.wave += state.wave > 0\n        while state.wave < len(self.waves):",
        RESUMED,
    ),
    Mutant(
        "a checkpoint forgets how far rows may be off", "packing.py",
        "return number if math.isfinite(number)", "return round(number, 9) if number == number",
        RESUMED,
    ),
    Mutant(
        "a changed matrix is not noticed", "checkpointing.py",
        "if known.get(slab, check) != check:",
        "if known.get(slab, check) != check and slab < 0:",
        "test_resume.py::test_another_matrix_is_refused_by_place",
    ),
    Mutant(
        "a commit that waits is lost", "checkpointing.py",
        "        if waiting is not None:\n            self._writing",
        "        if waiting is not None and self._failed:\n            self._writing",
        "test_resume.py::test_a_slow_store_does_not_stall_the_fit",
    ),
    Mutant(
        "a wave's old sums stay beside its new ones", "ensemble.py",
        "waves = [*self.waves[:wave], sums, *self.waves[wave + 1 :]]\n        if any",
        "waves = [*self.waves[:wave], sums, *self.waves[wave:]]\n        if any", WAVES,
    ),
    Mutant(
        "extrapolation forgets its bound", "numerics/stopping.py",
        "return np.maximum(ahead, 0, out=ahead)", "return ahead", WAVES,
    ),
    Mutant(
        "rows are drawn by the slab's own numbers", "numerics/sampling.py",
        '"draw", 0, place.start, place.stop, 1)', '"draw", 0, 0, place.stop - place.start, 1)',
        "test_few_passes.py::test_drawn_rows_depend_on_norms_and_numbers_not_on_slabs",
    ),
    Mutant(
        "counts of EM without the factor they met", "numerics/terms.py",
        "Columns(H * neg, mass", "Columns(neg, mass",
        "test_kl.py::test_waves_that_met_different_factors_add_up",
    ),
    Mutant(
        "all that quadratic models promise is counted", "ensemble.py",
        "return met - promised * max(min(SURE, 1.0 - 2.0 * promised / met), 0.0)", "return told",
        f"{TOLD}::test_what_models_promise_is_not_all_counted",
    ),
    Mutant(
        "models are taken for those of the factor that they lead to", "ensemble.py",
        "formed(sums.terms).met(self.target,", "formed(sums.terms).met(self.short,",
        f"{TOLD}::test_no_objective_rises_up_to_that_of_what_is_returned",
    ),
    Mutant(
        "a pass is taken back where what was told had been too low", "ensemble.py",
        "objective > self.good[0] * (1.0 + GUARD) and told", "told",
        "test_kl.py::test_a_pass_that_raised_one_objective_alone_goes_on",
    ),
    Mutant(
        "a pass is taken back where waves had fitted each its own factor", "ensemble.py",
        " and told > self.good[1] * (1.0 + GUARD)", "",
        "test_kl.py::test_a_pass_that_raised_one_objective_alone_goes_on",
    ),
    Mutant(
        "the loss of a wide matrix is that before its last step", "ensemble.py",
        "return sums._replace(terms=met._replace(value=loss))", "return sums",
        f"{TOLD}::test_the_other_factor_is_solved_last_where_that_gains",
    ),
    Mutant(
        "the thread that asks sleeps", "parallel/team.py",
        "        take()\n        for helper", "        for helper",
        "test_team.py::test_the_thread_that_asks_takes_part",
    ),
    Mutant(
        "a node is computed from the parts that are there first", "parallel/team.py",
        "                if missing[node]:\n", "                if missing[node] > 1:\n",
        "test_team.py::test_trees_give_what_their_functions_give_in_the_order_of_the_parts",
    ),
    Mutant(
        "entries shrink for ever", "numerics/kernels/columns.py",
        "if low[a] < NOTHING * largest:", "if low[a] < 0.0:",
        f"{TOLD}::test_entries_that_nothing_depends_on_become_zero",
    ),
    Mutant(
        "bound coefficients are never freed", ROWS,
        "elif g > 0.0 and g * g > scale[t] * gram[a, a]",
        "elif g > 1e9 and g * g > scale[t] * gram[a, a]",
        KKT,
    ),
    Mutant(
        "bound coefficients are never freed by pivots", "numerics/kernels/pivot.py",
        "if m[i] * inverse[z, z] < -WRONG", "if m[i] * inverse[z, z] < -1e9",
        "test_pivot.py::test_pivots_solve_rows_to_their_optimum",
    ),
    Mutant(
        "a tile's share comes from the rows of the first", "numerics/solvers/als.py",
        "[W[start:stop] for W in new])", "[W[: stop - start] for W in new])",
        f"{SOLVERS}::test_a_walk_by_tiles_is_that_over_the_whole_slab",
    ),
    Mutant(
        "the last entries of a column bring no curvature", "numerics/kernels/kl_share.py",
        "total[p] += s * w[p]\n            e += 1", "total[p] += 0.0 * w[p]\n            e += 1",
        "test_kl.py::test_shares_of_a_slab_that_is_listed_in_many_parts_add_up",
    ),
    Mutant(
        "lists of slabs are put together as if of the same rows", "numerics/kernels/columns.py",
        "= rows[e] + first, ratios[e]", "= rows[e], ratios[e]",
        "test_listed.py::test_lists_add_up_to_the_sums_of_all_rows",
    ),
    Mutant(
        "ratios are listed in the order of the rows", "numerics/kernels/kl_share.py",
        "ratios[place] = ratio_of[e]", "ratios[e] = ratio_of[e]",
        "test_listed.py::test_what_is_formed_from_a_list_is_what_a_slab_adds_up",
    ),
    Mutant(
        "lists are never formed while they are added up", "numerics/terms.py",
        "if len(lists) < len(parts) or not Listed.pays(columns, entries, height, k):",
        "if len(lists) < len(parts):",
        "test_listed.py::test_lists_that_are_longer_than_the_sums_are_formed",
    ),
    Mutant(
        "outer products of the rows before", "numerics/kernels/kl_share.py",
        "form_outer(W[i], products[i])", "form_outer(W[0], products[i])",
        "test_kl.py::test_shares_of_a_slab_that_is_listed_in_many_parts_add_up",
    ),
    Mutant(
        "slabs not seen bend as if their factor were one", "numerics/terms.py",
        "np.divide(pull, H, out", "np.divide(pull, 1.0, out",
        f"{FIRST}::test_slabs_not_seen_bend_as_the_bound_of_em_does",
    ),
    Mutant(
        "what is not seen yet weighs as much as what is", "ensemble.py",
        "missing / len(found)", "1.0",
        f"{FIRST}::test_passes_of_waves_are_those_of_the_twin",
    ),
    Mutant(
        "what is not seen yet is forgotten where V is heavier", "numerics/terms.py",
        "max(total / seen - 1.0, LEAST)", "max(seen / total, LEAST)",
        f"{FIRST}::test_what_is_not_seen_weighs_what_is_missing_of_the_total",
    ),
    Mutant(
        "a factor that was given moves by a part of V", "ensemble.py",
        "missing and not problem.foresees", "False",
        f"{FIRST}::test_a_converged_factor_stays_where_it_is",
    ),
    Mutant(
        "what is ahead may come to zero", "ensemble.py",
        "NEAREST * short", "0.0 * short",
        f"{FIRST}::test_passes_of_waves_are_those_of_the_twin",
    ),
    Mutant(
        "a pass that rose goes ahead again", "ensemble.py",
        "self.momentum, self.ahead = 0.0, None", "self.ahead = None",
        "test_kl.py::test_a_pass_that_raised_both_objectives_is_taken_back",
    ),
    Mutant(
        "rows are as exact as ever", "numerics/solvers/newton.py",
        "tol=max(self.tol, gain)", "tol=self.tol",
        "test_kl.py::test_rows_end_within_the_gap_they_promise",
    ),
    Mutant(
        "what rows may leave to gain is not in parts of the counts", "ensemble.py",
        "met / mass if mass", "met if mass",
        f"{FIRST}::test_rows_are_as_exact_as_the_last_pass_has_shown_to_pay",
    ),
    Mutant(
        "last rows explain what the last tile does", "numerics/solvers/als.py",
        "explained[n] += float(", "explained[n] = float(",
        f"{SOLVERS}::test_last_rows_tell_their_loss_without_the_other_product",
    ),
    Mutant(
        "final rows bring the sums of a half-step", "numerics/solvers/newton.py",
        "shares=False", "shares=True",
        f"{FIRST}::test_final_rows_and_their_loss_bring_nothing_else",
    ),
    Mutant(
        "merges form lists alone", "numerics/terms.py",
        "formed_of(lists, _share.get())", "formed_of(lists, None)",
        "test_listed.py::test_threads_form_lists_that_a_merge_makes_sums_of",
    ),
    Mutant(
        "a factor of roots is squared", "parallel/sample.py",
        "H.mean()) ** power", "H.mean()) ** 2.0",
        "test_roots.py::test_where_most_is_zero_the_start_goes_with_the_means",
    ),
    Mutant(
        "a sample ends a row too early", "numerics/sampling.py",
        "self.entries)) + 1", "self.entries))",
        "test_few_passes.py::test_sparse_rows_are_drawn_until_they_have_entries_enough",
    ),
    Mutant(
        "columns with curvature are updated as often as others", "numerics/planning.py",
        "if tall is None else max(2, min(WAVES, tall))", "",
        "test_few_passes.py::test_columns_with_curvature_are_updated_less_often",
    ),
    Mutant(
        "a start for another loss runs until it rests", "parallel/race.py",
        "if not polish:", "if polish is None:",
        f"{FIRST}::test_where_another_loss_goes_on_one_random_start_of_sparse_data_is_enough",
    ),
    Mutant(
        "threads solve rows from the first wave alone", "parallel/driver.py",
        "add([terms.part(some) for terms in found])", "found[0].part(some)",
        "test_kl.py::test_half_steps_are_the_same_for_any_number_of_threads",
    ),
    Mutant(
        "the second of the sums is left out", "parallel/driver.py",
        "for part in parts[1:]:\n            np.add(first",
        "for part in parts[2:]:\n            np.add(first",
        "test_kl.py::test_sums_that_nobody_else_needs_are_added_up_in_place",
    ),
    Mutant(
        "columns of the last candidate from some of its rows", "parallel/race.py",
        "add([terms for _, terms in found])", "add([terms for _, terms in found[1:] + found[1:2]])",
        "test_few_passes.py::test_the_last_candidate_has_all_threads_and_the_same_bits_for_any_number",
    ),
    Mutant(
        "restarts keep their draws where rows have nothing", "parallel/race.py",
        "whole = np.zeros((few.shape[1]", "whole = np.ones((few.shape[1]",
        "test_few_passes.py::test_restarts_leave_zero_where_their_few_rows_have_nothing",
    ),
    Mutant(
        "a tile's share leaves float32", "numerics/kernels/walk.py",
        "dtype, unit = self._fixed.dtype, unit_of(wide)", "dtype, unit = self._fixed.dtype, 1.0",
        f"{SOLVERS}::test_a_tiles_share_stays_in_the_range_of_float32",
    ),
    Mutant(
        "threads share their scratch", "numerics/kernels/walk.py",
        "some = self._idle.pop()", "some = self._idle[-1]",
        f"{SOLVERS}::test_visits_share_scratch_one_after_the_other_and_no_result",
    ),
    Mutant(
        "a visit's share lies in the scratch", "numerics/kernels/walk.py",
        "self._total = np.zeros(self._fixed.shape)",
        'self._total = self.scratch.take("total", self._fixed.shape)\n'
        "            self._total[:] = 0.0",
        f"{SOLVERS}::test_visits_share_scratch_one_after_the_other_and_no_result",
    ),
    Mutant(
        "one task adds sums up in another order", "parallel/remote.py",
        "merge_pieces([pieces[m] for m in members])",
        "merge_pieces([pieces[m] for m in members[::-1]])",
        "test_bundles.py::test_one_task_adds_up_in_the_order_of_the_tree",
    ),
    Mutant(
        "pivots are not refined", KERNELS,
        "refined=smallest < FINE * largest", "refined=False",
        "test_pivot.py::test_ill_conditioned_rows_are_refined",
    ),
    Mutant(
        "pieces of bundles in order of arrival", "parallel/remote.py",
        "for leaf in sorted(pieces)", "for leaf in pieces",
        "test_bundles.py::test_pieces_are_added_in_the_order_of_their_leaves",
    ),
    Mutant("transposed sparse product overwrites", LOOPS,
        "out[j, a] += v * fixed[i, a]", "out[j, a] = v * fixed[i, a]",
        f"{PIECES}::test_products_equal_their_scalar_twin",
    ),
    Mutant(
        "divergence without - v on sparse data", LOOPS,
        "total += v * np.log(ratio) - v", "total += v * np.log(ratio)", VALUE,
    ),
    Mutant(
        "negative values pass inspection", LOOPS,
        "if 0.0 <= v < np.inf:", "if -1.0 <= v < np.inf:",
        f"{PIECES}::test_inspection_counts_places_and_sums",
    ),
    Mutant(
        "L1 penalty dropped", "numerics/penalties.py",
        "Normal(terms.cross - self.l1, terms.gram + ridge)",
        "Normal(terms.cross, terms.gram + ridge)",
        TWIN,
    ),
    Mutant(
        "L2 penalty dropped from split terms", "numerics/penalties.py",
        "terms.pos + self.l1 + self.l2 * weight", "terms.pos + self.l1", TWIN,
    ),
    Mutant(
        "penalties scaled by the other axis", "numerics/penalties.py",
        "alpha_W * n_features, weight_H * n_samples", "alpha_W * n_samples, weight_H * n_features",
        "test_sklearn.py::test_regularisation_means_what_it_means_in_scikit_learn[als]",
    ),
    Mutant(
        "penalty of the rows on the short factor", "passes.py",
        "Problem.of(settings.loss, settings.penalties[1], seen,",
        "Problem.of(settings.loss, settings.penalties[0], seen,",
        f"{FITS}::test_kkt_conditions_hold_at_convergence[als-2.0-400-L2]",
    ),
    Mutant(
        "loss with half the cross term", "numerics/losses.py",
        "return dot - 0.5 * model", "return 0.5 * dot - 0.5 * model", VALUE,
    ),
    Mutant(
        "multiplicative exponent always one", "numerics/losses.py",
        "return Exponent(1.0 / (2.0 - self.beta))", "return Exponent(1.0)", TWIN,
    ),
    Mutant(
        "exact rows left unfinished", KERNELS,
        "descend_rows(C, G, out, live, before, sweeps, tol, gain, True)",
        "descend_rows(C, G, out, live, before, sweeps, tol, gain, False)", KKT,
    ),
    Mutant(
        "gradient step too long", "numerics/solvers/pg.py",
        "- terms.cross) / largest", "- terms.cross) * 1.5 / largest", TWIN,
    ),
    Mutant(
        "multiplicative update forgets the factor", "numerics/solvers/mu.py",
        "rows: Array = F * ratio", "rows: Array = ratio.copy()", TWIN,
    ),
    Mutant(
        "every slab draws the same random rows", "numerics/random.py",
        "start * (words // 4)).random", "0).random",
        f"{PIECES}::test_random_rows_do_not_depend_on_the_slabs",
    ),
    Mutant(
        "NNDSVD keeps the weaker half", "numerics/nndsvd.py",
        "up = left_up * right_up >= left_down * right_down",
        "up = left_up * right_up < left_down * right_down",
        "test_sklearn.py::test_nndsvd_starts_near_the_data_and_scikit_learns_start",
    ),
    Mutant(
        "the reported loss belongs to other factors", "parallel/driver.py",
        "loss.left(sum(explained)", "loss.left(1.0001 * sum(explained)", WAVES,
    ),
    Mutant(
        "one slab of a Dask array read twice, one not at all", "parallel/slabs.py",
        "range(end - members, end)", "range(max(end - members - 1, 0), end - 1 or 1)", LAYOUT,
    ),
    Mutant(
        "the plan forgets that sums pass through the scheduler", "numerics/memory.py",
        "(sums + 2) * sum_bytes(matrix, job)", "(sums + 1) * sum_bytes(matrix, job)",
        "test_memory.py::test_tasks_and_bytes_are_those_of_hand_counts",
    ),
    Mutant(
        "singular vectors no nearer than those that were given", "numerics/nystrom.py",
        "root = scaled @ whitening(", "root = basis @ whitening(",
        f"{SCARCE}::test_vectors_that_are_exact_stay_so_and_near_ones_get_nearer",
    ),
    Mutant(
        "stored zeros count as entries of a sample", "parallel/sample.py",
        "np.count_nonzero(rows.data)", "rows.nnz",
        f"{SCARCE}::test_plenty_counts_entries_for_each_of_the_factors",
    ),
    Mutant(
        "the plan forgets the read of a start", "numerics/memory.py",
        "max(sums, probed, sample_bytes(matrix, job))", "max(sums, sample_bytes(matrix, job))",
        f"{SCARCE}::test_the_plan_counts_what_the_read_brings",
    ),
    Mutant(
        "quadratic models are believed where a price lets the loss rise", "ensemble.py",
        "if told >= met and price.active:", "if told >= met and not price.active:",
        f"{TOLD}::test_where_a_price_lets_the_loss_rise_the_bound_counts",
    ),
    Mutant(
        "the loss of one factor with the price of another", "ensemble.py",
        "objective = met + rows + sum(self.paid) / len(self.paid)",
        "objective = met + rows + price.value(self.short)",
        f"{TOLD}::test_prices_that_shrink_the_factors_are_not_taken_for_convergence",
    ),
    Mutant(
        "the component leaves that explains most", "numerics/exchange.py",
        "leaves = int(np.argmin(", "leaves = int(np.argmax(",
        f"{EXCHANGE}::test_the_others_count_for_what_they_take_over",
    ),
    Mutant(
        "nobody takes over what leaves", "numerics/exchange.py",
        "rows = rows + passed + passed.T +", "rows = rows + 0.0 *",
        f"{EXCHANGE}::test_the_others_count_for_what_they_take_over",
    ),
    Mutant(
        "what joins is what V has, explained or not", "numerics/exchange.py",
        "kernels.matmul(V, basis) - kernels", "kernels.matmul(V, basis) - 0.0 * kernels",
        f"{EXCHANGE}::test_directions_are_the_residuals_singular_vectors",
    ),
    Mutant(
        "an exchange is taken that brought nothing", "parallel/race.py",
        "_ranked(racing + _exchanged(team, racing[0], sample, seed))[:survivors]",
        "(_exchanged(team, racing[0], sample, seed) or racing)[:survivors]",
        f"{EXCHANGE}::test_no_exchange_ends_above_its_beginning",
    ),
    Mutant(
        "columns of other components for those that stay", "parallel/scarce.py",
        "Normal(sums.terms.cross[:, kept]", "Normal(sums.terms.cross[:, :k]",
        f"{SCARCE}::test_a_start_is_the_best_factor_for_the_rows_of_those_that_stay",
    ),
    Mutant(
        "the plan forgets the components that leave", "numerics/memory.py",
        "width = max(job.width, job.widest)", "width = job.width",
        f"{SCARCE}::test_the_plan_counts_what_the_read_brings",
    ),
    Mutant(
        "stops after one quiet pass", "numerics/stopping.py",
        "recent = objectives[-self.patience - 1 :]", "recent = objectives[-2:]",
        f"{PIECES}::test_the_stop_rule_needs_patience_and_looks_only_at_recent_passes",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def server():
    """A process that has imported everything but the package; each run is a fork of it."""
    context = multiprocessing.get_context("forkserver")
    heavy = [
        "sklearn.utils.estimator_checks",
        "dask.array",
        "zarr",
        "numba",
        "hypothesis",
        "pytest",
    ]
    context.set_forkserver_preload([*heavy, "scipy.sparse", "scipy.special", "tqdm.auto"])
    changed = {"NUMBA_DISABLE_JIT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    kept = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    forkserver._forkserver._stop()  # another test's, which may have imported the package
    try:
        forkserver.ensure_running()
        yield context
    finally:
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        forkserver._forkserver._stop()


def run_on_copy(server, folder, *tests):
    """Run tests against the package copied to ``folder``; give pytest's exit code and output."""
    log = folder / "log"
    settings = os.fspath(TESTS.parent / "pyproject.toml")
    command = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-c", settings]
    command += ["--import-mode=importlib"]  # else the folder of tests comes before the copy
    command += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # some plugins are imported
    command += [os.fspath(TESTS / test) for test in tests]
    child = server.Process(
        target=mutant_child.run, args=(os.fspath(folder), command, os.fspath(log))
    )
    child.start()
    child.join(100)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode, log.read_text(encoding="utf8")[-4000:]


@pytest.fixture
def copy(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "*.nbi", "*.nbc")
    shutil.copytree(PACKAGE, tmp_path / "dasknmf", ignore=ignored)
    return tmp_path


def test_the_copy_itself_passes(copy, server):
    """Or every mutant would seem caught."""
    code, output = run_on_copy(
        server, copy, TWIN, VALUE, KKT, f"{PIECES}::test_tiles_change_nothing"
    )
    assert code == mutant_child.PASSED, output


# Every sixth on each run; all of them among the faults.
SOME = [
    pytest.param(mutant, marks=[pytest.mark.faults] if number % 6 else [], id=mutant.fault)
    for number, mutant in enumerate(MUTANTS)
]


@pytest.mark.parametrize("mutant", SOME)
def test_a_fault_turns_a_test_red(mutant, copy, server):
    file = copy / "dasknmf" / mutant.file
    source = file.read_text(encoding="utf8")
    assert source.count(mutant.old) == 1, "the mutant no longer fits the code: bring it up to date"
    file.write_text(source.replace(mutant.old, mutant.new), encoding="utf8")
    code, output = run_on_copy(server, copy, mutant.tests)
    assert code == mutant_child.FAILED, f"{mutant.fault}: {mutant.tests} did not notice\n{output}"
