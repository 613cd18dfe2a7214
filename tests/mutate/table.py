"""The mutations: the file and text that each changes, and the tests of which at least one must fail."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutation:
    """A fault in one line.

    Attributes:
        name: Unique name.
        file: Path relative to the root of the tree.
        old: Text that occurs in the file exactly once.
        new: Its replacement.
        tests: Test files, or pytest node ids of single tests.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


RULES = ("tests/models/test_closed_forms.py",)
ACCEPTANCE = (
    "tests/models/test_acceptance.py::test_a_draw_of_exactly_the_ratio_is_a_rejection",
    "tests/models/test_acceptance.py::test_at_r_0_a_tree_passes_over_drafts_of_probability_0",
)
THRESHOLDS = ("tests/simulator/protocol/test_thresholds.py",)
LINK = ("tests/simulator/network/test_link.py::test_messages_sent_together_arrive_one_serialisation_apart",)
TRANSPORT = ("tests/simulator/network/test_transport.py",)
TIMERS = ("tests/simulator/network/test_access.py::test_every_timer_stops_at_two_minutes",)
BUFFER = (
    "tests/simulator/network/test_impairments.py::test_a_message_that_fills_the_buffer_exactly_leaves_room_for_the_next",
)
FAST_LINK = ("tests/simulator/network/test_access.py::test_the_fast_link_is_given_only_where_it_covers_all",)
HANDSHAKE = ("tests/simulator/network/test_network.py::test_the_first_request_of_a_device_opens_its_connection",)
CLOUD = ("tests/simulator/cloud/test_cloud.py",)
ORDER = (*CLOUD, "tests/simulator/cloud/test_cloud_rules.py::test_who_is_served_first")
ADMISSION = ("tests/simulator/cloud/test_cloud_rules.py::test_who_cannot_wait_is_refused_and_stands_in_no_column",)
STATISTICS = (
    "tests/simulator/results/test_results.py::test_half_width_of_singles_is_students",
    "tests/simulator/results/test_results.py::test_half_widths_of_any_number_of_singles_are_students",
    "tests/simulator/results/test_results.py::test_summary_by_hand",
    "tests/simulator/results/test_results.py::test_speedup_is_taken_under_the_same_conditions_and_paired_by_request",
)
KEYS = ("tests/simulator/protocol/test_recording.py::test_key_depends_on_the_torch_version_and_the_format",)
PREFIX = ("tests/simulator/protocol/test_methods.py::test_prefix_length_where_floats_would_be_one_short",)
SCORES = ("tests/models/test_scores.py::test_interval_scores_are_those_of_the_interval", *RULES)
NEAREST = ("tests/simulator/experiment/test_calibrate.py::test_the_nearest_threshold_is_kept_not_the_last",)

MUTATIONS = (
    # methods
    Mutation(
        "speculative-accepts-at-the-ratio", "models/methods/speculative.py", "r * q < p", "r * q <= p", ACCEPTANCE
    ),
    Mutation(
        "speculative-residual-without-its-sum",
        "models/methods/speculative.py",
        "np.minimum(p, q) / q.sum(axis=-1, keepdims=True)",
        "np.minimum(p, q)",
        RULES,
    ),
    Mutation("tree-accepts-at-the-ratio", "models/methods/eagle2.py", "draw < ratio", "draw <= ratio", ACCEPTANCE),
    Mutation(
        "eagle2-keeps-one-node-more",
        "models/tree.py",
        "total_tokens - 1).tolist()",
        "total_tokens).tolist()",
        RULES,
    ),
    Mutation(
        "eagle2-ranks-by-the-last-step-alone",
        "models/tree.py",
        "torch.cat(self.scores)[beam].unsqueeze(-1) + log_q.gather(-1, best)",
        "log_q.gather(-1, best)",
        RULES,
    ),
    Mutation("lantern-stops-before-its-bound", "models/methods/lantern.py", 'side="right"', 'side="left"', RULES),
    Mutation(
        "lantern-lambda-of-the-whole",
        "models/methods/lantern.py",
        "((self.lambda_ or 1.0) - 1.0) * p[token]",
        "(self.lambda_ or 1.0) * p[token]",
        RULES,
    ),
    Mutation("lantern-rejects-one-code-less", "models/methods/lantern.py", "self.k + 1 if", "self.k if", RULES),
    Mutation(
        "interfuse-half-the-radius",
        "models/interval.py",
        "torch.sigmoid(odds + r)",
        "torch.sigmoid(odds + r / 2)",
        RULES,
    ),
    Mutation(
        "score-without-root-v",
        "models/interval.py",
        "delta.shape[-1] ** 0.5 * u",
        "u",
        SCORES,
    ),
    Mutation(
        "score-of-the-sample-deviation",
        "models/interval.py",
        "delta.std(-1, correction=0)",
        "delta.std(-1)",
        RULES,
    ),
    Mutation(
        "threshold-accepts-at-itself",
        "simulator/protocol/thresholds.py",
        "return value < tau",
        "return value <= tau",
        THRESHOLDS,
    ),
    Mutation(
        "budget-of-the-rest",
        "simulator/protocol/thresholds.py",
        "np.quantile(self.past, 1 - share)",
        "np.quantile(self.past, share)",
        THRESHOLDS,
    ),
    Mutation(
        "share-of-what-is-behind",
        "simulator/protocol/thresholds.py",
        "left = self.positions - len(self.past)",
        "left = len(self.past)",
        THRESHOLDS,
    ),
    Mutation(
        "scores-taken-back-stay",
        "simulator/protocol/thresholds.py",
        "if count < len(self.past):",
        "if False:",
        THRESHOLDS,
    ),
    Mutation(
        "top-p-drops-at-the-mass",
        "models/sampling.py",
        "before > top_p.to(x).unsqueeze(-1)",
        "before >= top_p.to(x).unsqueeze(-1)",
        RULES,
    ),
    Mutation(
        "warped-top-p-keeps-at-the-mass",
        "models/sampling.py",
        "ascending.softmax(-1).cumsum(-1) <= (1",
        "ascending.softmax(-1).cumsum(-1) < (1",
        RULES,
    ),
    Mutation(
        "prefix-length-in-floats",
        "simulator/protocol/methods.py",
        "int(Fraction(str(prefix_rate)) * image_tokens)",
        "int(prefix_rate * image_tokens)",
        PREFIX,
    ),
    # link and transport
    Mutation(
        "wire-forgets-that-it-is-busy",
        "simulator/network/link.py",
        "self._free_s = free_s = free_s + 8.0",
        "free_s = free_s + 8.0",
        LINK,
    ),
    Mutation(
        "propagation-occupies-the-wire",
        "simulator/network/link.py",
        "arrival_s = free_s + delay_s",
        "self._free_s = arrival_s = free_s + delay_s",
        LINK,
    ),
    Mutation(
        "buffer-full-at-its-size",
        "simulator/network/link.py",
        "one_object(8.0 * buffer_bytes + 0.5)",
        "one_object(8.0 * buffer_bytes - 0.5)",
        BUFFER,
    ),
    Mutation(
        "window-grows-by-nothing",
        "simulator/network/transport.py",
        "flights.append((acked_s, flight, flight))",
        "flights.append((acked_s, flight, 0))",
        TRANSPORT,
    ),
    Mutation(
        "timeouts-double-for-ever",
        "simulator/network/transport.py",
        "timeout_s = min(2.0 * timeout_s, MAX_RTO_S)",
        "timeout_s = 2.0 * timeout_s",
        TIMERS,
    ),
    Mutation(
        "one-duplicate-more",
        "simulator/network/transport.py",
        "after >= DUPLICATE_ACKS",
        "after > DUPLICATE_ACKS",
        TRANSPORT,
    ),
    Mutation(
        "handshake-of-a-round-trip-less",
        "simulator/network/access.py",
        "reversed(range(t.handshake_rtts))",
        "reversed(range(t.handshake_rtts - 1))",
        HANDSHAKE,
    ),
    Mutation(
        "fast-link-forgets-buffers",
        "simulator/network/access.py",
        "return self == covered and",
        'return Network(**{**self.__dict__, "up_buffer_bytes": math.inf}) == covered and',
        FAST_LINK,
    ),
    Mutation(
        "fast-link-forgets-loss",
        "simulator/network/access.py",
        "return self == covered and",
        'return Network(**{**self.__dict__, "up_loss": 0.0, "down_loss": 0.0}) == covered and',
        FAST_LINK,
    ),
    # cloud
    Mutation(
        "batch-of-one-more",
        "simulator/cloud/replica.py",
        "ready.choose(), self.max_batch)\n        if size == 1:",
        "ready.choose(), self.max_batch + 1)\n        if size == 1:",
        CLOUD,
    ),
    Mutation(
        "last-come-first-served",
        "simulator/cloud/replica.py",
        "batch = [ready.popleft() for _ in range(size)]",
        "batch = [ready.pop() for _ in range(size)]",
        ORDER,
    ),
    Mutation(
        "one-more-waits",
        "simulator/cloud/cloud.py",
        "len(self.waiting) >= self.rules.max_waiting",
        "len(self.waiting) > self.rules.max_waiting",
        ADMISSION,
    ),
    # results, recordings, calibration
    Mutation("one-sided-interval", "simulator/results/statistics.py", "0.5 + CONFIDENCE / 2", "CONFIDENCE", STATISTICS),
    Mutation(
        "speed-up-upside-down",
        "simulator/results/tables.py",
        "ratio(its, own, BATCHES)",
        "ratio(own, its, BATCHES)",
        STATISTICS,
    ),
    Mutation(
        "key-without-torch",
        "simulator/protocol/recording.py",
        ', "torch": torch_version()}',
        "}",
        KEYS,
    ),
    Mutation(
        "calibration-keeps-the-last",
        "simulator/experiment/calibrate.py",
        "level, best = min(tried, key=lambda one: abs(one[1].call_pct - target))",
        "level, best = tried[-1]",
        NEAREST,
    ),
)
