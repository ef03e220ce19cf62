// Keeps the photo in the browser and sends it with each search; nothing is uploaded before.
// `element` and `props` are given by gradio's HTML component; `LIMIT` is a number of bytes.
const SIDE = 1600;  // Larger photos are scaled down here: models read far fewer pixels.
const input = element.querySelector("input");
const shown = element.querySelector("img");
const preview = element.querySelector(".preview");
const zone = element.querySelector(".zone");
const note = element.querySelector(".note");

function say(text) { note.textContent = text; }

function forget(text) {
  props.value = "";
  input.value = "";
  preview.hidden = true;
  shown.removeAttribute("src");
  say(text);
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

async function smaller(file) {
  try {
    const picture = await createImageBitmap(file);
    const scale = SIDE / Math.max(picture.width, picture.height);
    if (scale >= 1) return null;
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(picture.width * scale);
    canvas.height = Math.round(picture.height * scale);
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL("image/jpeg", 0.92);
  } catch {
    return null;  // The service says what is wrong with it.
  }
}

async function take(file) {
  if (!file) return;
  say("Reading the photo …");
  try {
    let found = await smaller(file);
    if (found === null) {
      // A third more in base64, and some room for the rest of the form.
      if (file.size * 4 / 3 + 65536 > LIMIT) {
        forget(`${file.name} is too large: at most ${Math.floor(LIMIT * 3 / 4 / 1048576)} MB can be sent.`);
        return;
      }
      found = await read(file);
      if (!found.startsWith("data:image/")) {
        found = "data:image/unknown;base64," + found.slice(found.indexOf(",") + 1);
      }
    }
    props.value = found;
    shown.onerror = () => { shown.hidden = true; say(`${file.name}: this browser cannot show it.`); };
    shown.onload = () => { shown.hidden = false; say(`${file.name} will be sent with your search.`); };
    shown.src = found;
    preview.hidden = false;
  } catch (error) {
    forget(`${file.name} cannot be read (${error.message}).`);
  }
}

input.addEventListener("change", () => take(input.files[0]));
element.querySelector("button").addEventListener("click", () => { forget("No photo."); input.focus(); });
for (const name of ["dragenter", "dragover"]) {
  zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  zone.addEventListener(name, (event) => { event.preventDefault(); zone.classList.remove("over"); });
}
zone.addEventListener("drop", (event) => take(event.dataTransfer.files[0]));
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find((x) => x.type.startsWith("image/"));
  if (file) { event.preventDefault(); take(file); }
});
