"""Every value of every configuration has a test that shows what depends on it; a new value needs a row here."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
from functools import cache
from pathlib import Path

import intermoe
from intermoe.config import Config
from intermoe.train.config import SHARES

TESTS = Path(__file__).parent
SYSTEM, TEXT = "systems/intermoe/test_config_fields.py", "text/test_config_fields.py"
TRAIN, RULES, LOOP, SCALE = (f"train/test_{name}.py" for name in ("config_fields", "rules", "loop", "scale"))
EVALUATOR, EVAL, HAND = "evaluators/test_config_fields.py", "eval/test_protocol_rules.py", "test_diffusion_by_hand.py"
PIPELINES = "systems/test_pipelines.py"
COMPARE = "train/test_compare.py"
ABLATE, BLOCK, KINDS = "train/test_ablate.py", "nn/test_moe.py", "ops/test_routing.py"

LEVELS = "train/test_levels.py"
DISTILL = "train/test_distill.py"
BETWEEN, BETWEEN_RUN = "systems/intermoe/test_between.py", "train/test_between.py"

REACH_BLOCKS = f"{SYSTEM}::test_values_of_routing_reach_every_block"
SIZES = f"{SYSTEM}::test_widths_and_depths_of_the_denoiser"
OF_TEXT, OF_CLIP = f"{TEXT}::test_sizes_of_the_encoder", f"{TEXT}::test_layers_and_heads_of_the_clip_tower"
OF_INTERCLIP, OF_GRU = f"{EVALUATOR}::test_sizes_of_interclip", f"{EVALUATOR}::test_sizes_of_the_recurrent_evaluator"
LOSS = "train/test_losses.py::test_loss_is_the_weighted_sum"
VAE_RUN, DENOISER_RUN = (
    f"{TRAIN}::test_values_of_the_autoencoders_training", f"{TRAIN}::test_values_of_the_denoisers_training"
)  # fmt: skip
DUE = f"{RULES}::test_logging_validation_and_checkpoints_come_when_they_are_due"
FID = f"{SCALE}::test_fid_is_that_of_the_features"
SETTINGS = f"{EVAL}::test_every_setting_belongs_to_the_folder"

# "field": the tests that show what depends on it
SYSTEMS = "systems/test_config_fields.py"
MASKED, TOKENS = "systems/intermask/test_network.py", "systems/intermask/test_tokenizer.py"
FILE = "control/test_file.py"
NETWORKS, STARTED = "systems/test_network_fields.py", "train/test_system_fields.py"

FIELDS: dict[str, dict[str, str]] = {
    "VAEConfig": {
        "representation": f"{SYSTEM}::test_representation_and_width_of_latents",
        "latent_dim": f"{SYSTEM}::test_representation_and_width_of_latents",
        "num_blocks": f"{SYSTEM}::test_blocks_of_each_resolution",
        "kernel_size": f"{SYSTEM}::test_kernel_size_is_how_far_a_convolution_looks_back",
        "dropout": f"{SYSTEM}::test_dropout_of_the_autoencoder",
    },
    "DenoiserConfig": {
        **dict.fromkeys(("input_dim", "text_dim", "dim", "num_layers", "num_experts", "expert_dim"), SIZES),
        "num_heads": f"{SYSTEM}::test_heads_divide_the_width_and_change_the_answer",
        "capacity": f"{REACH_BLOCKS} {BLOCK}::test_bias_settles_at_the_capacity",
        "fusion": f"{REACH_BLOCKS} {SYSTEM}::test_the_fusion_weight_and_shared_experts_change_the_answer",
        "alpha": f"{REACH_BLOCKS} {SYSTEM}::test_the_fusion_weight_and_shared_experts_change_the_answer",
        "num_shared_experts": f"{REACH_BLOCKS} {BLOCK}::test_shared_experts_add_a_dense_network",
        "bias_rate": f"{REACH_BLOCKS} {RULES}::test_the_bias_moves_by_the_sum_over_micro_steps",
        "bias_init": f"{REACH_BLOCKS} {SYSTEM}::test_the_fusion_weight_and_shared_experts_change_the_answer",
        "dropout": f"{SYSTEM}::test_dropout_reaches_both_attentions "
        f"{SYSTEM}::test_dropout_of_attention_is_of_its_weights",
        "routing": f"{REACH_BLOCKS} {KINDS}::test_block_is_the_written_sum_on_every_backend",
        "top_k": f"{SYSTEM}::test_top_k_reaches_every_block",
        "pool": f"{REACH_BLOCKS} {KINDS}::test_block_is_the_written_sum_on_every_backend",
        "unit": f"{REACH_BLOCKS} {KINDS}::test_block_is_the_written_sum_on_every_backend",
        "zero_key": "nn/test_attention.py::test_the_configuration_reaches_every_attention "
        "nn/test_attention.py::test_attention_by_hand",
        "first_person": "systems/intermoe/test_denoiser.py::test_the_text_can_name_the_first_person",
        "recompute": f"{SCALE}::test_recomputation_changes_neither_gradients_nor_biases_nor_counts",
        "shortcut": f"{DISTILL}::test_shortcuts_are_for_the_steps_that_they_were_learned_for",
    },
    "ShortcutConfig": {
        **dict.fromkeys(
            ("steps", "guidance_scale"), f"{DISTILL}::test_shortcuts_are_for_the_steps_that_they_were_learned_for"
        ),
        "width": f"{DISTILL}::test_shortcuts_are_all_that_is_learned",
    },
    "ModelConfig": {
        "system": f"{SYSTEM}::test_the_system_chooses_the_pipeline",
        "name": f"{SYSTEM}::test_parts_are_built_from_their_configurations",
        **dict.fromkeys(("fps", "min_frames", "max_frames"), f"{SYSTEM}::test_rate_and_length_of_generated_motion"),
    },
    "PipelineConfig": {
        "rigid_bones": "test_pipeline.py::test_bones_are_rigid_where_the_configuration_says_so",
        "planted_feet": "test_pipeline.py::test_what_is_generated_stands_where_the_configuration_says_so",
        "smooth": "test_pipeline.py::test_joints_are_smooth_where_the_configuration_says_so",
        "on_floor": "test_pipeline.py::test_what_is_generated_stands_where_the_configuration_says_so",
        "bodies_apart": "test_pipeline.py::test_what_is_generated_stands_where_the_configuration_says_so",
        "levels": "control/test_known.py::test_the_way_is_that_of_the_models_training",
        **dict.fromkeys(("vae", "denoiser", "text"), f"{SYSTEM}::test_parts_are_built_from_their_configurations"),
        "diffusion": f"{SYSTEM}::test_sampling_follows_the_diffusion_of_the_configuration",
        "between": f"{BETWEEN}::test_a_short_gap_is_filled_alike_for_every_seed_and_prompt",
    },
    "BetweenConfig": {
        **dict.fromkeys(("width", "layers", "code", "waves"), f"{BETWEEN}::test_sizes_of_the_network"),
        "max_frames": f"{BETWEEN}::test_short_gaps_are_filled_and_nothing_else",
    },
    "RawMotionConfig": {
        **dict.fromkeys(("network", "text"), f"{PIPELINES}::test_what_is_saved_comes_back_bit_for_bit"),
        "diffusion": f"{PIPELINES}::test_codes_and_noise_levels_where_there_are_some",
    },
    **{name: {} for name in ("InterGenModelConfig", "TIMotionModelConfig")},
    "ComMDMModelConfig": {"representation": f"{PIPELINES}::test_commdm_of_humanml3d_makes_interhumans_motion"},
    "In2INModelConfig": {"guidance": f"{PIPELINES}::test_weights_of_in2ins_passes_are_the_configurations"},
    "InterMaskModelConfig": {
        **dict.fromkeys(("network", "tokenizer", "text"), f"{PIPELINES}::test_what_is_saved_comes_back_bit_for_bit"),
        "keep_share": f"{PIPELINES}::test_intermask_draws_from_the_share_that_it_keeps",
    },
    "MDMModelConfig": {"representation": f"{PIPELINES}::test_mdm_of_another_representation"},
    "TextConfig": {
        "kind": f"{TEXT}::test_the_kind_chooses_the_encoder",
        **dict.fromkeys(("output_dim", "width", "num_layers", "feedforward_dim"), OF_TEXT),
        "num_heads": f"{TEXT}::test_heads_change_the_answer_and_no_shape",
        "dropout": f"{TEXT}::test_dropout_is_of_training_alone_and_spells_words_in_pieces",
        "max_tokens": f"{OF_TEXT} {TEXT}::test_prompts_have_at_most_max_tokens",
        "vocab_size": f"{OF_TEXT} {TEXT}::test_a_vocabulary_that_is_too_small_is_refused",
        "vector_dim": "text/test_sentence.py::test_what_does_not_fit_is_named",
        "name_or_path": "text/test_tower.py::test_another_size_and_an_absent_model_are_refused",
        **dict.fromkeys(
            ("sentence_layers", "sentence_heads"),
            "text/test_sentence.py::test_what_does_not_fit_is_named "
            "text/test_sentence.py::test_token_states_are_the_sentence_encoders",
        ),
        "clip_layers": f"{OF_CLIP} text/test_tower.py::test_states_are_those_of_the_pretrained_tower",
        "clip_heads": f"{OF_CLIP} text/test_tower.py::test_states_are_those_of_the_pretrained_tower",
    },
    "DiffusionConfig": {
        **dict.fromkeys(
            ("num_train_timesteps", "max_beta"),
            f"{HAND}::test_every_scheduler_has_the_schedule_of_the_configuration "
            f"{SYSTEM}::test_sampling_follows_the_diffusion_of_the_configuration",
        ),
        "condition_dropout": f"{TRAIN}::test_text_is_dropped_with_its_probability_in_training_alone",
        "snr_gamma": f"{HAND}::test_loss_by_hand {TRAIN}::test_weights_of_the_loss_count_in_training_alone",
        "latent_scale": f"{SYSTEM}::test_sampling_follows_the_diffusion_of_the_configuration "
        f"{TRAIN}::test_the_latents_under_the_noise_are_scaled",
        "scale_input": f"{HAND}::test_sampling_scales_what_the_network_sees_and_nothing_else "
        f"{SYSTEM}::test_sampling_follows_the_diffusion_of_the_configuration "
        f"{TRAIN}::test_the_latents_under_the_noise_are_scaled",
        "timestep_shift": f"{TRAIN}::test_timesteps_are_drawn_from_the_whole_schedule_and_shifted",
        "guidance_until": f"{SYSTEM}::test_guidance_ends_where_the_configuration_says",
        "loss_std_floor": "train/test_denoiser.py::test_the_loss_takes_its_metric_from_the_training_latents",
    },
    "DataConfig": {
        "representation": f"{TRAIN}::test_lengths_strictness_and_representation_of_the_data",
        "root": "train/test_vae.py::test_data_must_be_given_and_exist",
        "batch_size": f"{TRAIN}::test_a_batch_has_as_many_items_as_configured",
        "min_frames": f"{TRAIN}::test_the_shortest_item_of_a_run",
        "max_frames": f"{TRAIN}::test_lengths_strictness_and_representation_of_the_data",
        "mirror": f"{TRAIN}::test_augmentation_is_of_the_training_split_and_as_configured",
        "swap_persons": f"{TRAIN}::test_augmentation_is_of_the_training_split_and_as_configured",
        "num_workers": f"{TRAIN}::test_workers_are_as_many_as_configured",
        "strict": f"{TRAIN}::test_lengths_strictness_and_representation_of_the_data",
    },
    "OptimConfig": {
        "steps": f"{RULES}::test_logging_validation_and_checkpoints_come_when_they_are_due",
        **dict.fromkeys(("epochs", "warmup_epochs"), f"{SCALE}::test_epochs_are_counted_in_steps"),
        **dict.fromkeys(
            ("learning_rate", "schedule", "warmup_steps"),
            f"{RULES}::test_the_learning_rate_follows_its_schedule_step_by_step",
        ),
        **dict.fromkeys(
            ("decay", "decay_at"), f"{RULES}::test_the_learning_rate_falls_in_steps_where_it_is_said"
        ),
        "weight_decay": f"{RULES}::test_weight_decay_shrinks_weights_without_a_gradient",
        "betas": f"{RULES}::test_betas_are_those_of_the_moments",
        **dict.fromkeys(("clip", "clip_limit"), f"{LOOP}::test_gradients_are_clipped"),
        "accumulation_steps": f"{LOOP}::test_accumulated_gradient_is_that_of_the_whole_batch",
        "mixed_precision": f"{TRAIN}::test_precision_of_a_run {LOOP}::test_mixed_precision_keeps_weights_in_float32",
        "tf32": f"{TRAIN}::test_tf32_is_of_devices_that_have_it",
        "ema_decay": f"{RULES}::test_the_average_that_is_kept_warms_up",
    },
    "RunConfig": {
        "log_every": "train/test_vae.py::test_run_leaves_a_model_its_configuration_and_its_logs",
        **dict.fromkeys(("validate_every", "checkpoint_every", "keep_checkpoints"), DUE),
        "compile": f"{SCALE}::test_compiled_parts_are_those_of_the_configuration",
        "cuda_graphs": "train/test_graphs.py::test_a_run_is_the_same_bit_for_bit",
        "fid_clips": FID,
        "fid_steps": FID,
        "fid_evaluator": FID,
    },
    "TrainConfig": {
        "seed": "train/test_vae.py::test_same_seed_same_bytes "
        f"{RULES}::test_numbers_of_an_item_depend_on_seed_step_and_place_in_the_step",
        "data": f"{TRAIN}::test_augmentation_is_of_the_training_split_and_as_configured",
        "optim": f"{RULES}::test_the_learning_rate_follows_its_schedule_step_by_step",
        "run": DUE,
        "trainer": "train/test_trainers.py::test_a_recipe_is_of_its_trainer_alone",
    },
    "VAELossConfig": dict.fromkeys(
        ("reconstruction", "position", "velocity", "rotation", "kl", "bone", "skating"), f"{LOSS} {VAE_RUN}"
    ),
    "VAETrainConfig": {
        "decoder_only": "train/test_vae.py::test_refining_the_decoder_leaves_the_latents_alone",
        "latent_noise": "train/test_vae.py::"
        "test_latent_noise_reaches_the_decoder_at_a_level_of_its_own_for_each_sequence",
        **dict.fromkeys(("window", "window_stride", "model", "losses"), VAE_RUN),
    },
    "TextPretrainingConfig": dict.fromkeys(
        ("steps", "batch_size", "learning_rate"), f"{TRAIN}::test_text_is_trained_first_by_its_own_values"
    ),
    "DenoiserTrainConfig": {
        **dict.fromkeys(
            ("name", "rigid_bones", "planted_feet", "on_floor", "bodies_apart", "smooth"),
            f"{TRAIN}::test_name_and_cleaning_are_saved_with_the_model",
        ),
        "load_balance": f"{TRAIN}::test_load_balance_is_added_with_its_weight",
        "router_z": f"{TRAIN}::test_the_routers_z_loss_is_added_with_its_weight",
        **dict.fromkeys(("denoiser", "text", "diffusion"), DENOISER_RUN),
        "text_pretraining": "train/test_text.py::test_a_run_keeps_the_encoder_that_was_trained_first",
        "levels": f"{TRAIN}::test_mixed_levels_change_the_loss_and_are_saved_with_the_model",
    },
    "LevelMixConfig": {
        **dict.fromkeys(SHARES, f"{LEVELS}::test_shares_are_met"),
        "run": f"{LEVELS}::test_independent_levels_change_with_person_and_run",
        "positions": "train/test_denoiser.py::test_places_count_where_something_is_known",
    },
    "DistillConfig": {
        **dict.fromkeys(
            ("steps", "teacher_steps", "guidance_scale", "trajectories"),
            f"{DISTILL}::test_trajectories_are_the_models_own_from_noise_to_motion",
        ),
        "width": f"{DISTILL}::test_shortcuts_are_all_that_is_learned",
    },
    "BetweenTrainConfig": dict.fromkeys(
        ("gaps", "noise", "between"), f"{BETWEEN_RUN}::test_each_value_of_the_recipe_counts"
    ),
    "EvaluatorTrainConfig": {"model": "train/test_evaluator.py::test_a_run_resumes_and_is_an_evaluator"},
    "InterClipConfig": {
        "representation": f"{EVALUATOR}::test_dropout_and_representation_of_interclip",
        **dict.fromkeys(("persons", "input_dim"), f"{EVALUATOR}::test_input_columns_and_persons"),
        **dict.fromkeys(("width", "num_layers", "feedforward_dim", "embedding_dim", "text"), OF_INTERCLIP),
        "num_heads": f"{EVALUATOR}::test_heads_change_the_answer_and_no_shape",
        "dropout": f"{EVALUATOR}::test_dropout_and_representation_of_interclip",
        "scale": f"{EVALUATOR}::test_scale_is_the_length_of_every_embedding",
    },
    "BiGRUConfig": {
        "representation": f"{EVALUATOR}::test_representation_of_interx_puts_both_persons_side_by_side",
        "input_dim": f"{EVALUATOR}::test_normalisation_and_columns_of_the_recurrent_evaluator",
        **dict.fromkeys(("max_frames", "max_words"), f"{EVALUATOR}::test_motion_and_texts_are_cut_to_their_most"),
        **dict.fromkeys(
            ("vocab_size", "word_dim", "movement_dim", "motion_dim", "text_dim", "embedding_dim"), OF_GRU
        ),
    },
    "EvaluationSettings": {
        **dict.fromkeys(("data", "split", "items", "model", "evaluator"), SETTINGS),
        "batch_size": f"{EVAL}::test_texts_are_compared_within_batches_of_the_settings",
        **dict.fromkeys(
            ("num_inference_steps", "guidance_scale", "scheduler", "generation_batch", "seed"),
            f"{EVAL}::test_settings_reach_the_generation",
        ),
        **dict.fromkeys(
            ("mm_captions", "mm_samples"), f"{EVAL}::test_multimodality_is_of_as_many_texts_and_samples_as_set"
        ),
    },
    "Variant": {
        "name": f"{ABLATE}::test_rows_and_their_measures",
        "title": f"{ABLATE}::test_table_puts_published_numbers_beside",
        "changes": f"{ABLATE}::test_shipped_variants_change_what_they_say",
        "published": f"{ABLATE}::test_table_puts_published_numbers_beside",
    },
    "AblationConfig": {
        "base": f"{TRAIN}::test_base_and_steps_of_an_ablation",
        "variants": f"{ABLATE}::test_rows_and_their_measures",
        "published_on": f"{TRAIN}::test_base_and_steps_of_an_ablation",
    },
    "AblationSettings": {
        "steps": f"{TRAIN}::test_base_and_steps_of_an_ablation",
        **dict.fromkeys(
            ("seeds", "num_inference_steps", "guidance_scale"),
            f"{TRAIN}::test_settings_of_an_ablation_reach_the_generation",
        ),
    },
    "InterGenConfig": {
        **dict.fromkeys(
            ("input_dim", "text_dim", "dim", "num_layers", "feedforward_dim"), f"{SYSTEMS}::test_sizes_of_intergen"
        ),
        "num_heads": f"{SYSTEMS}::test_heads_of_intergen_change_the_answer_and_no_shape",
        "dropout": f"{SYSTEMS}::test_dropout_of_intergen_is_in_attention_and_feed_forward",
        "mask_padding": f"{SYSTEMS}::test_padding_that_is_not_masked_is_computed_on",
    },
    "MotionLossConfig": {
        **dict.fromkeys(
            ("simple", "velocity", "bones", "feet", "distances", "touch", "orientation"),
            f"{SYSTEMS}::test_a_weight_of_intergens_loss_is_of_its_term_alone",
        ),
        "last_timestep": f"{SYSTEMS}::test_the_last_timestep_that_is_judged",
        **dict.fromkeys(
            ("step_into_padding", "orientation_of_all"),
            "systems/test_intergen.py::test_the_published_codes_habits_are_switches",
        ),
    },
    "GuidanceConfig": dict.fromkeys(
        ("everything", "interaction", "individuals"),
        "systems/test_in2in.py::test_four_passes_are_the_weighted_sum_of_four_calls",
    ),
    "DualMDMConfig": {
        **dict.fromkeys(
            ("interaction_scale", "individual_scale", "rate", "num_train_timesteps"),
            f"{SYSTEMS}::test_scales_and_times_of_dual_mdm",
        ),
        "schedule": "systems/test_in2in.py::test_schedules",
    },
    "InterMaskConfig": {
        **dict.fromkeys(
            ("num_codes", "code_dim", "text_dim", "dim", "num_layers", "feedforward_dim", "num_parts"),
            f"{SYSTEMS}::test_sizes_of_intermask",
        ),
        "num_heads": f"{SYSTEMS}::test_heads_of_intermask_change_the_answer_and_no_shape",
        "dropout": f"{SYSTEMS}::test_dropout_of_intermask_is_in_attention_and_feed_forward",
    },
    "ComparedSystem": dict.fromkeys(
        ("name", "title", "stages", "shares"), f"{COMPARE}::test_rows_and_their_measures"
    ),
    "ComparisonConfig": {
        "systems": f"{COMPARE}::test_rows_and_their_measures",
        "evaluator": f"{COMPARE}::test_a_loaded_model_stands_in_its_row",
        "published_on": f"{COMPARE}::test_the_table_has_the_published_rows_beside",
        "changes": f"{COMPARE}::test_parameters_are_those_without_the_text_encoder",
    },
    "ComparisonSettings": {
        "seed": f"{COMPARE}::test_what_is_done_is_read_and_another_seed_is_not",
        **dict.fromkeys(
            ("steps", "guidance", "captions", "batch_size"), "eval/test_compare.py::test_settings_reach_the_generation"
        ),
    },
    "ExpertsConfig": dict.fromkeys(
        ("num_experts", "expert_dim", "capacity", "bias_rate"),
        "integrations/test_systems.py::test_experts_are_as_configured",
    ),
    **{
        name: {}
        for name in (
            "InterGenExpertsConfig",
            "TIMotionExpertsConfig",
            "InterGenExpertsModelConfig",
            "TIMotionExpertsModelConfig",
        )
    },
    "UnmaskingConfig": {
        "num_inference_steps": f"{MASKED}::test_unmasking_opens_less_each_round_and_reconsiders_nothing",
        "guidance_scale": f"{SYSTEMS}::test_codes_are_the_likeliest_of_the_guided_logits",
        "keep_share": f"{MASKED}::test_of_the_likeliest_code_alone_nothing_is_drawn",
    },
    "KnownEntry": {
        **dict.fromkeys(("person", "file", "of", "start", "frames"), f"{FILE}::test_entries_are_where_they_say"),
        "resample": f"{FILE}::test_another_rate_is_resampled_only_when_told",
        "align": f"{FILE}::test_persons_of_a_file_are_moved_together",
    },
    "TargetEntry": dict.fromkeys(
        ("person", "joint", "frames", "positions", "to_person", "to_joint", "distance", "apart"),
        f"{FILE}::test_targets_are_what_they_say",
    ),
    "ControlFile": {
        **dict.fromkeys(
            ("known", "blend", "resampling", "estimate_gaps"), f"{FILE}::test_entries_are_where_they_say"
        ),
        **dict.fromkeys(("targets", "bodies_apart"), f"{FILE}::test_targets_are_what_they_say"),
    },
    "MDMConfig": {
        **dict.fromkeys(
            ("input_dim", "text_dim", "dim", "num_layers", "feedforward_dim"), f"{NETWORKS}::test_sizes_of_mdm"
        ),
        "num_heads": f"{NETWORKS}::test_heads_of_mdm_change_the_answer_and_no_shape",
        "dropout": f"{NETWORKS}::test_dropout_of_mdm_is_in_attention_and_behind_both_parts",
        "mask_padding": "systems/mdm/test_mdm.py::test_padding_matters_only_as_published",
    },
    "ComMDMConfig": {
        **dict.fromkeys(
            ("backbone", "num_layers", "feedforward_dim"),
            f"{NETWORKS}::test_sizes_of_the_block_that_joins_two",
        ),
        "num_heads": f"{NETWORKS}::test_heads_of_the_block_that_joins_two_change_the_answer_and_no_shape",
        "split": f"{NETWORKS}::test_the_split_is_after_how_many_layers_persons_hear_of_each_other",
    },
    "TIMotionConfig": dict.fromkeys(
        ("local_patterns", "conv_blocks", "dilation_rate"),
        f"{NETWORKS}::test_local_patterns_are_of_so_many_convolutions_that_reach_so_far",
    ),
    "TokenizerConfig": {
        "representation": f"{TOKENS}::test_a_motion_is_an_image_and_back "
        f"{TOKENS}::test_shapes_and_refusals_of_the_tokenizer",
        **dict.fromkeys(
            ("num_codes", "code_dim", "width", "num_blocks", "dilation_growth"),
            f"{NETWORKS}::test_sizes_of_the_tokenizer",
        ),
        "dropout": f"{NETWORKS}::test_dropout_of_the_tokenizer_is_of_training_in_every_residual_block",
        "messages": f"{TOKENS}::test_only_the_published_graph_depends_on_the_place_in_a_batch",
        "temperature": f"{NETWORKS}::test_the_temperature_is_that_of_the_drawn_codes",
        "codebook_decay": f"{NETWORKS}::test_the_decay_is_that_of_the_codebooks_averages",
    },
    "TokenizerLossConfig": {
        **dict.fromkeys(
            ("reconstruction", "position", "velocity", "bone", "rotation", "contact"),
            f"{NETWORKS}::test_a_weight_of_the_tokenizers_loss_is_of_its_term_alone",
        ),
        "commitment": f"{STARTED}::test_windows_model_and_losses_of_the_tokenizer",
    },
    "TokenizerTrainConfig": dict.fromkeys(
        ("window", "window_stride", "model", "losses"), f"{STARTED}::test_windows_model_and_losses_of_the_tokenizer"
    ),
    "InterMaskTrainConfig": {
        "name": "train/test_intermask.py::test_the_second_stage_runs_on_the_first_and_resumes",
        **dict.fromkeys(("person_share", "condition_dropout"), f"{STARTED}::test_shares_of_intermasks_training"),
        **dict.fromkeys(("model", "text"), f"{STARTED}::test_model_and_text_of_intermask"),
    },
    "MotionTrainConfig": {
        "name": "train/test_motion.py::test_a_run_resumes_bit_for_bit_and_its_model_is_a_pipeline",
        "diffusion": f"{STARTED}::test_diffusion_of_raw_motion {STARTED}::test_timesteps_of_raw_motion_are_shifted",
        **dict.fromkeys(
            ("system", "network", "text", "losses"), f"{STARTED}::test_system_network_text_and_losses_of_raw_motion"
        ),
    },
    "MDMTrainConfig": {
        "name": "train/test_mdm.py::test_both_stages_run_one_after_the_other_and_resume",
        "diffusion": f"{STARTED}::test_diffusion_of_mdm_and_commdm",
        **dict.fromkeys(("model", "text"), f"{STARTED}::test_model_and_text_of_mdm"),
    },
    "ComMDMTrainConfig": {
        "name": "train/test_mdm.py::test_both_stages_run_one_after_the_other_and_resume",
        "diffusion": f"{STARTED}::test_diffusion_of_mdm_and_commdm",
        "model": f"{STARTED}::test_model_of_commdm",
    },
}  # fmt: skip


@cache
def _configurations() -> dict[str, type[Config]]:
    apart = ("intermoe.kernels", "intermoe.benchmarks")  # another test of this process may have imported them
    for module in pkgutil.walk_packages(intermoe.__path__, "intermoe."):
        if not module.name.startswith(apart) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = {}, [Config]
    while left:
        for kind in left.pop().__subclasses__():
            if kind.__module__.startswith("intermoe.") and not kind.__module__.startswith(apart):
                found[kind.__name__] = kind
                left.append(kind)
    return found


@cache
def _tests(path: str) -> frozenset[str]:
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_every_configuration_is_in_the_table() -> None:
    assert FIELDS.keys() == _configurations().keys()


def test_every_value_has_a_row() -> None:
    for name in FIELDS:
        kind = _configurations()[name]
        inherited = {
            field.name for base in kind.__bases__ if issubclass(base, Config) for field in dataclasses.fields(base)
        }
        own = {field.name for field in dataclasses.fields(kind)} - inherited
        assert FIELDS[name].keys() == own, f"{name}: expected a row for each of its values"


def test_every_row_names_tests_that_exist() -> None:
    for name, rows in FIELDS.items():
        for field, tests in rows.items():
            for test in tests.split():
                path, function = test.split("::")
                assert function in _tests(path), f"{name}.{field}: no test {test}"
