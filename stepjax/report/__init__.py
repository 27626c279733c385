"""``stepjax report``: a run as one page that opens from disk."""
