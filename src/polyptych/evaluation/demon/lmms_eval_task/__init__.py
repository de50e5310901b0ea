"""Files of the lmms-eval task folder, copied as they are by ``lmms_eval_export``."""
