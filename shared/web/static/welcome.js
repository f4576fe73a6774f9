// A company most likely lives in the time zone of whoever sets it up; they can say otherwise.
const field = document.querySelector("form[data-guess-zone] [name=time_zone]");
const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
if (field && zone && [...document.querySelectorAll("#zones option")].some((option) => option.value === zone)) field.value = zone;
