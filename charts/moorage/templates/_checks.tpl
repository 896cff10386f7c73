{{/* What the schema cannot say. Each failure names the value, what is allowed and what to do. */}}
{{- define "moorage.checks" -}}
{{- include "moorage.checks.kubeletDir" . -}}
{{- include "moorage.checks.lease" . -}}
{{- include "moorage.checks.pools" . -}}
{{- include "moorage.checks.imports" . -}}
{{- include "moorage.checks.liveDriver" . -}}
{{- include "moorage.checks.classes" . -}}
{{- include "moorage.checks.liveClasses" . -}}
{{- end }}

{{- define "moorage.checks.absolute" -}}
{{- if not (hasPrefix "/" .path) -}}
{{- fail (printf "%s: %q is not an absolute path; write it with a leading slash" .what .path) -}}
{{- end -}}
{{- range splitList "/" (trimAll "/" .path) -}}
{{- if or (eq . "") (eq . ".") (eq . "..") -}}
{{- fail (printf "%s: %q has an empty, \".\" or \"..\" part; write the plain path" $.what $.path) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A socket's path has room for 107 bytes; the longest one below the kubelet's directory takes 42. */}}
{{- define "moorage.checks.kubeletDir" -}}
{{- include "moorage.checks.absolute" (dict "what" "kubeletDir" "path" .Values.kubeletDir) -}}
{{- $dir := include "moorage.kubeletDir" . -}}
{{- if gt (len $dir) 65 -}}
{{- fail (printf "kubeletDir: %q is %d bytes long, at most 65 leave room for the sockets below it" $dir (len $dir)) -}}
{{- end -}}
{{- end }}

{{/* A leader has to stop before another one begins, and to have tried before it stops. */}}
{{- define "moorage.checks.lease" -}}
{{- with .Values.operator.lease -}}
{{- if or (ge (int .renew) (int .duration)) (ge (int .retry) (int .renew)) -}}
{{- fail (printf "operator.lease: %d, %d, %d: duration must be longer than renew, and renew longer than retry" (int .duration) (int .renew) (int .retry)) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Paths the node plugin's container needs for itself, by what they are; pools and imports are mounted at their own path. */}}
{{- define "moorage.checks.taken" -}}
{{- $taken := dict "the kubelet's directory" (include "moorage.kubeletDir" .) -}}
{{- range list "/bin" "/csi" "/dev" "/etc" "/lib" "/lib64" "/opt/moorage" "/proc" "/registration" "/run" "/sbin" "/sys" "/tls" "/usr" -}}
{{- $_ := set $taken (printf "the system directory %s" .) . -}}
{{- end -}}
{{- toJson $taken -}}
{{- end }}

{{- define "moorage.checks.overlap" -}}
{{- range $owner, $other := .taken -}}
{{- if or (hasPrefix (printf "%s/" $other) (printf "%s/" $.path)) (hasPrefix (printf "%s/" $.path) (printf "%s/" $other)) -}}
{{- fail (printf "%s: the path %q overlaps with %s (%s); %s" $.what $.path $owner $other $.instead) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* What is imported may not be a pool's, nor the kubelet's: the node plugin would refuse to start. */}}
{{- define "moorage.checks.imports" -}}
{{- $taken := include "moorage.checks.taken" . | fromJson -}}
{{- range .Values.pools -}}
{{- $_ := set $taken (printf "pool %s" .name) (include "moorage.poolPath" .path) -}}
{{- end -}}
{{- range .Values.imports -}}
{{- include "moorage.checks.absolute" (dict "what" "imports" "path" .) -}}
{{- $path := include "moorage.poolPath" . -}}
{{- include "moorage.checks.overlap" (dict "what" "imports" "path" $path "taken" $taken "instead" "name the directories that have what is to be imported") -}}
{{- $_ := set $taken (printf "import %s" $path) $path -}}
{{- end -}}
{{- end }}

{{/* Kubernetes refuses this change half way through an upgrade; say so before anything is written. */}}
{{- define "moorage.checks.liveDriver" -}}
{{- $live := lookup "storage.k8s.io/v1" "CSIDriver" "" "csi.moorage.dev" -}}
{{- if $live -}}
{{- $was := dig "spec" "volumeLifecycleModes" list $live | toJson -}}
{{- $wanted := include "moorage.lifecycleModes" . -}}
{{- if ne $was $wanted -}}
{{- fail (printf "ephemeralVolumes.enabled: %t: the CSIDriver csi.moorage.dev exists with volumeLifecycleModes %s and can never change them to %s; delete it first and upgrade then, volumes and running pods stay as they are: kubectl delete csidriver csi.moorage.dev" .Values.ephemeralVolumes.enabled $was $wanted) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "moorage.checks.pools" -}}
{{- $names := list -}}
{{- $taken := include "moorage.checks.taken" . | fromJson -}}
{{- range .Values.pools -}}
{{- $what := printf "pools: %s" .name -}}
{{- if has .name $names -}}
{{- fail (printf "%s: two pools have this name; give each its own" $what) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- include "moorage.checks.absolute" (dict "what" $what "path" .path) -}}
{{- $path := include "moorage.poolPath" .path -}}
{{- include "moorage.checks.overlap" (dict "what" $what "path" $path "taken" $taken "instead" "choose a folder of its own, like /var/lib/moorage/default") -}}
{{- $_ := set $taken (printf "pool %s" .name) $path -}}
{{- end -}}
{{- end }}

{{- define "moorage.checks.classes" -}}
{{- $pools := list -}}
{{- range .Values.pools -}}{{- $pools = append $pools .name -}}{{- end -}}
{{- $names := list -}}
{{- $defaults := list -}}
{{- range .Values.storageClasses -}}
{{- if has .name $names -}}
{{- fail (printf "storageClasses: two classes are named %q; give each its own name" .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- if .default -}}{{- $defaults = append $defaults .name -}}{{- end -}}
{{- $pool := dig "pool" "" (.parameters | default dict) -}}
{{- if and $pool (not (has $pool $pools)) -}}
{{- fail (printf "storageClasses: %s: there is no pool %q; pools has: %s" .name $pool (join ", " $pools)) -}}
{{- end -}}
{{- end -}}
{{- if gt (len $defaults) 1 -}}
{{- fail (printf "storageClasses: %s all say default: true; one class at most may be the default" (join ", " $defaults)) -}}
{{- end -}}
{{- end }}

{{/* Kubernetes refuses these changes half way through an upgrade; say so before anything is written. */}}
{{- define "moorage.checks.liveClasses" -}}
{{- range .Values.storageClasses -}}
{{- $live := lookup "storage.k8s.io/v1" "StorageClass" "" .name -}}
{{- if $live -}}
{{- $was := dict "provisioner" $live.provisioner "reclaimPolicy" $live.reclaimPolicy "volumeBindingMode" $live.volumeBindingMode "parameters" (dig "parameters" dict $live) -}}
{{- $wanted := dict "provisioner" "csi.moorage.dev" "reclaimPolicy" .reclaimPolicy "volumeBindingMode" .volumeBindingMode "parameters" (.parameters | default dict) -}}
{{- range $field, $value := $wanted -}}
{{- $old := get $was $field -}}
{{- if ne (toJson $old) (toJson $value) -}}
{{- fail (printf "storageClasses: the class %s exists with %s %s and can never change it to %s; add a class under a new name, or delete this one first (its volumes stay)" $live.metadata.name $field (toJson $old) (toJson $value)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
