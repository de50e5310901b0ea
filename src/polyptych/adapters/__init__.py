"""Methods as small adapters on the vision-language models of transformers.

``families`` what differs between bases · ``base`` the seams · ``sam``, ``camml``, ``vpgc`` the
methods · ``adapt`` puts them together · ``processor`` makes batches · ``files`` saves adapters.
"""
