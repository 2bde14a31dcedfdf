"""Studies: scenes x variants x seeds, each a resumable run of the pipeline's scripts, and the table that compares them.

Words: a *run* is one scene, variant and seed. It is made of *tasks*; a task lies in a folder of its own that is named
by what makes it (settings, scene, seed where it matters, and the tasks that it needs), so that runs share what is
equal between them. A task is finished when its manifest `study.json` is there, which is written last.
"""
