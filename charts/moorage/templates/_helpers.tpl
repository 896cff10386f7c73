{{/* The fields that select pods. They never change, so they hold neither the version nor the chart. */}}
{{- define "moorage.selectorLabels" -}}
app.kubernetes.io/name: moorage
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Labels of every object: what selects it, and what it came from. */}}
{{- define "moorage.labels" -}}
{{ include "moorage.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: moorage
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels of a pod template: the user's own, and over them those that select. */}}
{{- define "moorage.podLabels" -}}
{{- $selectors := include "moorage.selectorLabels" . | fromYaml -}}
{{- toYaml (merge $selectors .extra) -}}
{{- end }}

{{/* registry/repository:tag, or @digest where there is one. */}}
{{- define "moorage.image" -}}
{{- $registry := .Values.global.imageRegistry | default .Values.image.registry | trimSuffix "/" -}}
{{- with $registry }}{{ . }}/{{ end -}}
{{- .Values.image.repository -}}
{{- if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* imagePullSecrets of a pod, or nothing. */}}
{{- define "moorage.pullSecrets" -}}
{{- with concat .Values.global.imagePullSecrets .Values.image.pullSecrets | uniq -}}
imagePullSecrets:
{{ toYaml . | indent 2 }}
{{- end -}}
{{- end }}

{{/* The kubelet's directory without the trailing slash people paste. */}}
{{- define "moorage.kubeletDir" -}}
{{- trimAll "/" .Values.kubeletDir | printf "/%s" -}}
{{- end }}

{{/* pools.json, as the node plugin reads it. */}}
{{- define "moorage.pools" -}}
{{- $pools := list -}}
{{- range .Values.pools -}}
{{- $pools = append $pools (dict
  "name" .name
  "path" (include "moorage.poolPath" .path)
  "reserve" (.reserve | default "0")
  "overcommit" (.overcommit | default 1.0)
  "shared" (.shared | default false)
  "trashRetention" (.trashRetention | default "0s")
  "archiveRetention" (.archiveRetention | default "0s")) -}}
{{- end -}}
{{- $imports := list -}}
{{- range .Values.imports -}}
{{- $imports = append $imports (include "moorage.poolPath" .) -}}
{{- end -}}
{{- dict "imports" $imports "pools" $pools | toPrettyJson -}}
{{- end }}

{{/* Kinds of volumes that the kubelet takes from the driver, as the CSIDriver has them. */}}
{{- define "moorage.lifecycleModes" -}}
{{- ternary (list "Persistent" "Ephemeral") (list "Persistent") .Values.ephemeralVolumes.enabled | toJson -}}
{{- end }}

{{- define "moorage.poolPath" -}}
{{- trimAll "/" . | printf "/%s" -}}
{{- end }}
