"""A page to restore pictures in: `work` has the models and the line of jobs, `uploads` what comes from a browser and
what goes there, `fields` the form that tasks declare, `page` all of it. Only the last two know Gradio."""
