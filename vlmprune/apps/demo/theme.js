() => {
  // Gradio shows an uploaded image with an empty alternative text.
  const name = () => document.querySelectorAll('[id$="-image"] img[alt=""]').forEach(
    image => { image.alt = "The image that is asked about"; });
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
  document.documentElement.lang = "en";
  name();
}
