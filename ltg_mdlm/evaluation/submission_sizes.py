"""Numbers of predictions in a submission with the published data of July 2026, as the official collator checks them.

`BLIMP` and the other mappings count the questions by uid, in lower case.
"""

from __future__ import annotations

BLIMP = {
    "adjunct_island": 928,
    "anaphor_gender_agreement": 971,
    "anaphor_number_agreement": 931,
    "animate_subject_passive": 895,
    "animate_subject_trans": 923,
    "causative": 818,
    "complex_np_island": 846,
    "coordinate_structure_constraint_complex_left_branch": 906,
    "coordinate_structure_constraint_object_extraction": 949,
    "determiner_noun_agreement_1": 929,
    "determiner_noun_agreement_2": 931,
    "determiner_noun_agreement_irregular_1": 681,
    "determiner_noun_agreement_irregular_2": 820,
    "determiner_noun_agreement_with_adj_2": 941,
    "determiner_noun_agreement_with_adj_irregular_1": 718,
    "determiner_noun_agreement_with_adj_irregular_2": 840,
    "determiner_noun_agreement_with_adjective_1": 933,
    "distractor_agreement_relational_noun": 788,
    "distractor_agreement_relative_clause": 871,
    "drop_argument": 920,
    "ellipsis_n_bar_1": 802,
    "ellipsis_n_bar_2": 828,
    "existential_there_object_raising": 812,
    "existential_there_quantifiers_1": 930,
    "existential_there_quantifiers_2": 911,
    "existential_there_subject_raising": 924,
    "expletive_it_object_raising": 759,
    "inchoative": 855,
    "intransitive": 868,
    "irregular_past_participle_adjectives": 961,
    "irregular_past_participle_verbs": 942,
    "irregular_plural_subject_verb_agreement_1": 804,
    "irregular_plural_subject_verb_agreement_2": 892,
    "left_branch_island_echo_question": 947,
    "left_branch_island_simple_question": 951,
    "matrix_question_npi_licensor_present": 929,
    "npi_present_1": 909,
    "npi_present_2": 914,
    "only_npi_licensor_present": 882,
    "only_npi_scope": 837,
    "passive_1": 840,
    "passive_2": 903,
    "principle_a_c_command": 946,
    "principle_a_case_1": 912,
    "principle_a_case_2": 915,
    "principle_a_domain_1": 914,
    "principle_a_domain_2": 915,
    "principle_a_domain_3": 941,
    "principle_a_reconstruction": 967,
    "regular_plural_subject_verb_agreement_1": 890,
    "regular_plural_subject_verb_agreement_2": 945,
    "sentential_negation_npi_licensor_present": 919,
    "sentential_negation_npi_scope": 871,
    "sentential_subject_island": 961,
    "superlative_quantifiers_1": 979,
    "superlative_quantifiers_2": 986,
    "tough_vs_raising_1": 948,
    "tough_vs_raising_2": 920,
    "transitive": 868,
    "wh_island": 960,
    "wh_questions_object_gap": 859,
    "wh_questions_subject_gap": 898,
    "wh_questions_subject_gap_long_distance": 857,
    "wh_vs_that_no_gap": 861,
    "wh_vs_that_no_gap_long_distance": 875,
    "wh_vs_that_with_gap": 919,
    "wh_vs_that_with_gap_long_distance": 910,
}

SUPPLEMENT = {
    "hypernym": 842,
    "qa_congruence_easy": 64,
    "qa_congruence_tricky": 165,
    "subject_aux_inversion": 3867,
    "turn_taking": 280,
}

EWOK = {
    "agent-properties": 2210,
    "social-relations": 1548,
    "physical-relations": 818,
    "material-dynamics": 770,
    "physical-interactions": 556,
    "spatial-relations": 490,
    "social-properties": 328,
    "quantitative-properties": 314,
    "social-interactions": 294,
    "material-properties": 170,
    "physical-dynamics": 120,
}

ENTITY_TRACKING = {
    f"{split}_{operations}_ops": count
    for split, counts in {
        "regular": (517, 409, 405, 425, 388, 94),
        "ambiref": (508, 428, 413, 409, 434, 123),
        "move_contents": (516, 437, 399, 406, 353, 116),
    }.items()
    for operations, count in enumerate(counts)
}
"""Without the rows in which an option contains "nothing"."""

ENTITY_TRACKING_FAST = {uid: count for uid, count in ENTITY_TRACKING.items() if uid.startswith("regular")}

COMPS = {"base": 49340, "wugs": 13896, "wugs_dist_before": 13896, "wugs_dist_in_between": 13896}

GLUE = {"boolq": 1635, "mnli": 4908, "mrpc": 204, "multirc": 2424, "qqp": 20215, "rte": 139, "wsc": 52}

READING = {"reading": 1726}

GLOBAL_PIQA_PARALLEL, GLOBAL_PIQA_NONPARALLEL = 103, 100
"""Examples, each of which is a uid with one prediction."""

BLIMP_FAST, SUPPLEMENT_FAST, EWOK_FAST = 200, 50, 100
"""Questions of every uid."""

CONTEXTS = 8005
"""Words in context for age of acquisition, per checkpoint."""
